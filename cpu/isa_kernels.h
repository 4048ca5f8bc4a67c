// The last lines of each instruction set's file: `Isa` becomes a row of the dispatch table.
#pragma once

#include "gradient_kernel.h"
#include "hamming_kernel.h"
#include "update_kernel.h"
#include "weigh_kernel.h"

#define PB_KERNELS(isa)                                                                                   \
    namespace packedbag {                                                                                 \
    int isa##_usable();                                                                                   \
    extern const Kernels isa##_kernels;                                                                   \
    const Kernels isa##_kernels = {#isa,                                                                  \
                                   isa##_usable,                                                          \
                                   bag_kernel,                                                            \
                                   sum_rows_kernel,                                                       \
                                   row_dot_kernel,                                                        \
                                   counter_update_kernel,                                                 \
                                   counter_step_kernel,                                                   \
                                   {distances_kernel, below_kernel}};                                     \
    }
