// What the tensor cores sustain: every SM multiplies random tiles that already lie in its shared memory (or registers), again
// and again, so that nothing but the matrix units and their power can be the limit. Bound: arithmetic.
//
// One iteration of a block is 128 x 256 x 64 (BF16) or 128 x 256 x 128 (FP8) multiply-adds, whichever instruction does them:
// wgmma on sm_90a, mma.sync elsewhere (BF16 alone: sm_80 has no FP8).
#include "cuda/bench_kernels.h"
#include "cuda/device.cuh"

namespace sigmoe::cuda {
namespace {

constexpr int kThreads = 256, kIterations = 2048;
constexpr int kRowsA = 128, kRowsB = 256, kRowBytes = 128, kStages = 2;
constexpr int kStageBytes = (kRowsA + kRowsB) * kRowBytes, kSharedBytes = kStages * kStageBytes + 1024;

__device__ uint32_t hash(uint32_t x) {
  x = (x ^ x >> 16) * 0x7feb352du;
  x = (x ^ x >> 15) * 0x846ca68bu;
  return x ^ x >> 16;
}

// Two BF16 values in (-2, 2), or four E4M3 codes that are not NaN.
template <bool kFp8>
__device__ uint32_t random_word(uint32_t seed) {
  const uint32_t bits = hash(seed);
  if constexpr (kFp8) return bits & 0xbfbfbfbfu;
  return (bits & 0x80ff80ffu) | 0x3f003f00u;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// 128-byte rows, swizzled by 128 bytes, eight rows to 1024 bytes.
__device__ uint64_t tile_descriptor(uint32_t shared_address) {
  return uint64_t{(shared_address & 0x3ffff) >> 4} | uint64_t{1} << 16 | uint64_t{64} << 32 | uint64_t{1} << 62;
}

#define SIGMOE_R8(i)                                                                                                        \
  "+f"(sum[i]), "+f"(sum[i + 1]), "+f"(sum[i + 2]), "+f"(sum[i + 3]), "+f"(sum[i + 4]), "+f"(sum[i + 5]), "+f"(sum[i + 6]), \
      "+f"(sum[i + 7])
#define SIGMOE_R32(i) SIGMOE_R8(i), SIGMOE_R8(i + 8), SIGMOE_R8(i + 16), SIGMOE_R8(i + 24)
#define SIGMOE_SUMS                                                                                           \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,"   \
  "%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,"  \
  "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"  \
  "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104," \
  "%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125," \
  "%126,%127}, %128, %129, 1, 1, 1"

template <bool kFp8>
__device__ void multiply_tile(float (&sum)[128], uint64_t a, uint64_t b) {
  if constexpr (kFp8)
    asm volatile("wgmma.mma_async.sync.aligned.m64n256k32.f32.e4m3.e4m3 " SIGMOE_SUMS ";"
                 : SIGMOE_R32(0), SIGMOE_R32(32), SIGMOE_R32(64), SIGMOE_R32(96)
                 : "l"(a), "l"(b));
  else
    asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 " SIGMOE_SUMS ", 0, 0;"
                 : SIGMOE_R32(0), SIGMOE_R32(32), SIGMOE_R32(64), SIGMOE_R32(96)
                 : "l"(a), "l"(b));
}

// Each of two warpgroups multiplies its 64 rows of A with all of B.
template <bool kFp8>
__device__ float run_block(uint32_t shared_address) {
  float sum[128];
#pragma unroll
  for (int i = 0; i < 128; ++i) sum[i] = 0.0f;
  const uint32_t group_rows = threadIdx.x / 128 * 64 * kRowBytes;
  for (int i = 0; i < kIterations; ++i) {
    const uint32_t stage = shared_address + i % kStages * kStageBytes;
    const uint64_t a = tile_descriptor(stage + group_rows), b = tile_descriptor(stage + kRowsA * kRowBytes);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int k = 0; k < 4; ++k) multiply_tile<kFp8>(sum, a + 2 * k, b + 2 * k);  // 32 bytes of k each
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  }
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < 128; ++i) total += sum[i];
  return total;
}

template <bool kFp8>
constexpr bool kHasUnits = true;

#else

// Eight warps, each an eighth of the block's products: 128 of m16n8k16 an iteration.
template <bool kFp8>
__device__ float run_block(uint32_t) {
  constexpr int kTiles = 16;
  float sum[kTiles][4] = {};
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; ++i) a[i] = random_word<false>(threadIdx.x * 8 + i);
  for (int i = 0; i < 2; ++i) b[i] = random_word<false>(threadIdx.x * 8 + 4 + i);
  for (int i = 0; i < kIterations * 128 / kTiles; ++i) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
      asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                   : "+f"(sum[tile][0]), "+f"(sum[tile][1]), "+f"(sum[tile][2]), "+f"(sum[tile][3])
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
  float total = 0.0f;
  for (const auto& tile : sum)
    for (const float value : tile) total += value;
  return total;
}

template <bool kFp8>
constexpr bool kHasUnits = !kFp8;

#endif

template <bool kFp8>
__global__ void __launch_bounds__(kThreads, 1) matrix_peak_kernel(MatrixPeak* peak) {
  if constexpr (kHasUnits<kFp8>) {
    extern __shared__ uint8_t shared_bytes[];
    const uint32_t aligned = (static_cast<uint32_t>(__cvta_generic_to_shared(shared_bytes)) + 1023) & ~1023u;
    auto* words = reinterpret_cast<uint32_t*>(shared_bytes);
    for (int i = threadIdx.x; i < kSharedBytes / 4; i += kThreads) words[i] = random_word<kFp8>(blockIdx.x * 65536u + i);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
    __syncthreads();
    const float total = run_block<kFp8>(aligned);
    if (total == 0.12345f) peak->sum = total;  // keeps the products; hardly ever taken
    if (blockIdx.x == 0 && threadIdx.x == 0) peak->flop_per_block = 2.0 * 128 * 256 * (kFp8 ? 128 : 64) * kIterations;
  }
}

template <bool kFp8>
void launch_peak(const Queue& queue, int n_blocks, MatrixPeak* peak) {
  launch(queue, matrix_peak_kernel<kFp8>, n_blocks, kThreads, kSharedBytes, peak);
}

}  // namespace

void launch_matrix_peak(const Queue& queue, bool fp8, int n_blocks, MatrixPeak* peak) {
  fp8 ? launch_peak<true>(queue, n_blocks, peak) : launch_peak<false>(queue, n_blocks, peak);
}

}  // namespace sigmoe::cuda
