// Counters of 32 columns at once: plane k holds bit k of 32 counts.
// Source: Klarqvist, Mula, Lemire, "Efficient Computation of Positional Population Counts Using SIMD Instructions",
// arXiv:1911.02696; the carry-save tree is Harley and Seal's.

// A full adder on 32 columns; each line is one LOP3.
__device__ __forceinline__ void full_add(u32 &carry, u32 &sum, u32 a, u32 b, u32 c) {
  carry = (a & b) | (a & c) | (b & c);
  sum = a ^ b ^ c;
}

// P = 4 counts up to 15 rows, 8 up to 255, 32 any bag. With P = 32, the planes from 8 on are used where `deep` says so.
template <int P> struct Planes {
  u32 c[P];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int k = 0; k < P; k++) c[k] = 0u;
  }

  // Adds eight rows: 14 LOP3, and one carry into plane 3.
  __device__ __forceinline__ void add8(const u32 *x, bool deep) {
    u32 ones_a, ones_b, twos_a, twos_b, carry;
    full_add(ones_a, c[0], c[0], x[0], x[1]);
    full_add(ones_b, c[0], c[0], x[2], x[3]);
    full_add(twos_a, c[1], c[1], ones_a, ones_b);
    full_add(ones_a, c[0], c[0], x[4], x[5]);
    full_add(ones_b, c[0], c[0], x[6], x[7]);
    full_add(twos_b, c[1], c[1], ones_a, ones_b);
    full_add(carry, c[2], c[2], twos_a, twos_b);
#pragma unroll
    for (int k = 3; k < (P < 8 ? P : 8); k++) ripple(k, carry);
    if (P > 8 && deep) {
#pragma unroll
      for (int k = 8; k < P; k++) ripple(k, carry);
    }
  }

  __device__ __forceinline__ void add1(u32 x, bool deep) {
#pragma unroll
    for (int k = 0; k < (P < 8 ? P : 8); k++) ripple(k, x);
    if (P > 8 && deep) {
#pragma unroll
      for (int k = 8; k < P; k++) ripple(k, x);
    }
  }

  // The columns whose count is at least `threshold`: bit-sliced comparison from the lowest plane up.
  __device__ __forceinline__ u32 at_least(u32 threshold, bool deep) const {
    u32 so_far = 0xffffffffu;
#pragma unroll
    for (int k = 0; k < P; k++) {
      if (P > 8 && k >= 8 && !deep) break;  // nothing counted, and no bit of the threshold, lies there
      const u32 bit = 0u - ((threshold >> k) & 1u);
      so_far = (c[k] & (so_far | ~bit)) | (so_far & ~bit);
    }
    return so_far;
  }

 private:
  __device__ __forceinline__ void ripple(int k, u32 &carry) {
    const u32 next = c[k] & carry;
    c[k] ^= carry;
    carry = next;
  }
};
