// Offsets as bags need them: (bags + 1,) 64-bit, the end of the last bag included, none outside the indices. Offsets
// that do not describe bags are reported, and their bags may be empty or overlap; none reads outside the indices.

// Args: offsets (given,), where given is bags or bags + 1; total: how many indices there are; bad (1,) or null: becomes
//   NaN where offsets are wrong.
template <class O>
__global__ void __launch_bounds__(256)
    bag_ends(const O *__restrict__ offsets, i64 *__restrict__ ends, i64 given, i64 bags, i64 total, u32 *bad,
             u64 *record, int *raised) {
  const i64 b = (i64)thread_number();
  if (b > bags) return;
  const i64 value = b < given ? (i64)offsets[b] : (bags ? total : 0);
  const i64 before = b ? (i64)offsets[b - 1] : 0;
  if (bad && (value > total || value < before || (b == 0 && value != 0))) atomicOr(bad, NOT_A_NUMBER);
  if (b == 0 && value != 0) {
    report(record, raised, KIND_START, 0, value, 0);
  } else if (value > total) {
    report(record, raised, KIND_BEYOND, (u64)b, value, total);
  } else if (value < before) {
    report(record, raised, KIND_FALL, (u64)b, value, before);
  }
  ends[b] = value < 0 ? 0 : (value > total ? total : value);
}
