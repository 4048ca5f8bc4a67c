// Whether a step is taken, decided on the device: a step is none for all tables where the gradient of one is not finite.

// Looks at one table's anchor, whose gradient is what others have made of `share`, what backward calls added to it.
// Args: bad (1,): not 0 where a batch holds what RAISE refuses; control: see control.cuh; factor (2,): what the table's
//   gradients are multiplied by; 1 where it has any, else 0. totals: see totals.cuh, or null; a refused step folds them,
//   too: the next one then finds nothing to fold.
__global__ void judge(const float *__restrict__ anchor_gradient, const float *__restrict__ bad, float share, int table,
                      i64 *control, float *factor, u64 *totals) {
  const float received = anchor_gradient[0];
  const bool finite = (__float_as_uint(received) & 0x7f800000u) != 0x7f800000u && bad[0] == 0.0f;  // bad is NaN, or 0
  if (!finite) {
    control[REFUSED] = 1;
    if (control[FIRST_REFUSED] == 0) control[FIRST_REFUSED] = table + 1;
  } else if (received != 0.0f) {
    control[WORK] = 1;
  }
  factor[0] = received / share;
  factor[1] = finite && received != 0.0f ? 1.0f : 0.0f;
  if (totals) fold(totals);
}

// Ends a step: counts it, or the refusal, of which `raised`, in host memory, tells the host.
__global__ void finish(i64 *control, int *raised) {
  if (control[REFUSED]) {
    control[REFUSALS] += 1;
    __stwt(raised, 1);
    __threadfence_system();
  } else if (control[WORK]) {
    control[STEPS] += 1;
  }
  control[REFUSED] = 0;
  control[WORK] = 0;
}
