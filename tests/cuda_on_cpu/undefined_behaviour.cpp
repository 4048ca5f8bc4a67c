// UBSan's handlers: g++ calls them from a kernel built with -fsanitize=undefined. Ours name the place and the CUDA
// thread and fail the launch, where libubsan would end the process.
#include "scheduler.h"

namespace {
struct Place {
  const char *file;
  uint32_t line, column;
};
struct Type {
  uint16_t kind, info;  // an integer: kind 0, info = log2(bits) * 2 + signed
  char name[1];
};
struct TypeMismatch {
  Place place;
  const Type *type;
  unsigned char log_alignment, access;
};
struct Typed {
  Place place;
  const Type *type;
};
#define EMU_AT "%s:%u: "
#define EMU_PLACE(place) (place).file, (place).line
}  // namespace

extern "C" {
void __ubsan_handle_type_mismatch_v1_abort(const TypeMismatch *data, uintptr_t address) {
  const unsigned long alignment = 1ul << data->log_alignment;
  if (!address) emu_fail(EMU_AT "access through a null pointer to %s", EMU_PLACE(data->place), data->type->name);
  if (address & (alignment - 1))
    emu_fail(EMU_AT "misaligned address %#lx for %s, which needs a multiple of %lu", EMU_PLACE(data->place),
             (unsigned long)address, data->type->name, alignment);
  emu_fail(EMU_AT "access to an object too small for %s", EMU_PLACE(data->place), data->type->name);
}
#define EMU_TYPED(check, text)                                        \
  void __ubsan_handle_##check##_abort(const Typed *data) {            \
    emu_fail(EMU_AT text " (%s)", EMU_PLACE(data->place), data->type->name); \
  }
EMU_TYPED(add_overflow, "signed overflow in +")
EMU_TYPED(sub_overflow, "signed overflow in -")
EMU_TYPED(mul_overflow, "signed overflow in *")
EMU_TYPED(negate_overflow, "signed overflow in a negation")
EMU_TYPED(divrem_overflow, "division by zero, or signed overflow in a division")
EMU_TYPED(shift_out_of_bounds, "shift by an amount, or of a value, that C++ leaves undefined")
EMU_TYPED(float_cast_overflow, "conversion to an integer type that cannot hold the value")
EMU_TYPED(load_invalid_value, "load of a value that the type does not have")
void __ubsan_handle_out_of_bounds_abort(const Typed *data, uintptr_t index) {
  emu_fail(EMU_AT "index %ld out of bounds of %s", EMU_PLACE(data->place), (long)(int32_t)index, data->type->name);
}
#define EMU_PLACED(check, text)                                    \
  void __ubsan_handle_##check(const Place *place) {                \
    emu_fail(EMU_AT text, EMU_PLACE(*place));                      \
  }
EMU_PLACED(pointer_overflow_abort, "pointer arithmetic that wraps around, or on a null pointer")
EMU_PLACED(vla_bound_not_positive_abort, "array of no elements")
EMU_PLACED(nonnull_arg_abort, "null passed where it is not allowed")
EMU_PLACED(invalid_builtin_abort, "a bit count of zero")
EMU_PLACED(builtin_unreachable, "a place that __builtin_unreachable() excludes was reached")
EMU_PLACED(missing_return, "a function with a result ended without one")
}
