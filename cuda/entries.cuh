// Which row an index names, and the record of indices and offsets that name none. A kernel cannot raise, and must not
// touch what lies outside: a bad entry counts as dropped, and the host raises when it next looks at the record.
enum { RAISE = 0, CLAMP = 1, SKIP = 2, UNCHECKED = 3 };
#define NOT_A_NUMBER 0x7fc00000u  // float32: what mark.cu and bag_ends.cu say of a batch that is refused
enum { KIND_INDEX = 1, KIND_START = 2, KIND_FALL = 3, KIND_BEYOND = 4 };

// Fields of the record, in device memory. POSITION starts at the largest number.
enum { LOCK = 0, POSITION = 1, KIND = 2, VALUE = 3, LIMIT = 4 };

// Keeps the finding with the least position, so that what is reported does not depend on who comes first. `raised` lies
// in host memory: the host sees there, without asking the device, that there is something to read.
__device__ __noinline__ void report(u64 *record, int *raised, int kind, u64 position, i64 value, i64 limit) {
  if (atomicMin(record + POSITION, position) <= position) return;
  for (bool done = false; !done;) {
    if (atomicCAS(record + LOCK, 0ull, 1ull)) continue;
    if (atomicMin(record + POSITION, ~0ull) == position) {  // no lower one came meanwhile
      atomicExch(record + KIND, (u64)kind);
      atomicExch(record + VALUE, (u64)value);
      atomicExch(record + LIMIT, (u64)limit);
    }
    __threadfence();
    atomicExch(record + LOCK, 0ull);
    done = true;
  }
  __stwt(raised, 1);
  __threadfence_system();
}

// How indices are read: rows V, the padding row or -1, and the policy for what lies outside.
struct Reading {
  i64 rows, padding;
  int policy;
};

// The test that most entries pass and that is all they need: two comparisons in the index's own width.
template <class I> struct Usual {
  typedef typename Unsigned<I>::type U;
  U limit;     // of indices of this width that name a row; UNCHECKED: all but -1
  I padding;   // -1 where there is none, which is no row
  bool quiet;  // SKIP: others are dropped, and nobody is told

  __device__ __forceinline__ explicit Usual(const Reading &reading) {
    const u64 most = (U)~(U)0 / 2u + 1u;
    limit = reading.policy == UNCHECKED ? (U)~(U)0 : (U)((u64)reading.rows < most ? (u64)reading.rows : most);
    padding = (u64)reading.padding < most ? (I)reading.padding : (I)-1;
    quiet = reading.policy == SKIP;
  }
  __device__ __forceinline__ bool inside(I index) const { return (U)index < limit; }
};

// The row of an index, or -1 where the entry is dropped; `outside` is set where RAISE has to report it.
template <class I> __device__ __forceinline__ I row_of(I index, const Reading &reading, bool &outside) {
  if (reading.padding >= 0 && (i64)index == reading.padding) return -1;
  if (index >= 0 && (i64)index < reading.rows) return index;
  if (reading.policy == UNCHECKED) return index;
  if (reading.policy == CLAMP) return reading.rows ? (index < 0 ? 0 : (I)(reading.rows - 1)) : -1;
  outside = reading.policy == RAISE;
  return -1;
}
