// y = x W^T for many rows of x, by wgmma. Bound: arithmetic from some 200 rows per weight on, the bytes of W below.
//
// Blocks of 256 rows of W stay and take the items (tile of rows of x, rows of W) of tensor_tile.cuh in turn; the row tiles of
// an expert follow each other, so that W is read from memory once.
#include "cuda/tensor_tile.cuh"

namespace sigmoe::cuda {
namespace {

constexpr int kBlocks = 2;  // of 64 rows of W, per warpgroup

// Results of linear and down pass through shared memory, a warpgroup's 128 columns of each row as one run.
template <typename T>
constexpr int kRunStride = 128 * sizeof(T) + 16;  // the padding spreads a fragment over all banks
template <int Rows>
constexpr int kOutRows = Rows > 128 ? 80 : 128;  // at a time, in BF16; 112 of 144 are slower
template <int Rows>
constexpr int kGroupOut = kOutRows<Rows>* kRunStride<__nv_bfloat16>;

// Those of gate-up likewise, 64 columns of a warpgroup in BF16.
constexpr int kInnerColumns = kBlocks * 32, kInnerStride = kInnerColumns * 2 + 16;
template <int Rows>
constexpr int kInnerRows = Rows > 128 ? 48 : 64;  // at a time
template <int Rows>
constexpr int kGroupInner = kInnerRows<Rows>* kInnerStride;
static_assert(kGroups * kGroupInner<128> >= 128 * 128);  // BF16 weights: a block of 128 bytes of a tile's rows

template <WeightFormat F>
using GateUpMemory = Shared<kBlocks, tile_rows(F), 4, kGroups * kGroupInner<tile_rows(F)>>;
template <WeightFormat F, GemmMode M>
using Memory = std::conditional_t<M == GemmMode::gate_up, GateUpMemory<F>,
                                  Shared<kBlocks, tile_rows(F), 3, kGroups * kGroupOut<tile_rows(F)>>>;

// Sums times their row's factor to out, rows picked by out_rows.
template <typename T, int N, class S>
__device__ void write_rows(const TensorGemmArgs& args, S& s, T* out, int weight_tile, int info, const Sums<N, kBlocks>& sum) {
  const int thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32, group = threadIdx.x / 128, g = lane / 4,
            q = lane % 4, n = args.weight.n, n_rows = s.items[info].n_rows;
  constexpr int kMostRows = kOutRows<S::kRows> / (sizeof(T) / 2) / 16 * 16, kPass = N < kMostRows ? N : kMostRows;
  uint8_t* own = s.out + group * kGroupOut<S::kRows>;
  const int first = weight_tile * 16 + group * 128, n_columns = min(128, n - first);
#pragma unroll
  for (int begin = 0; begin < N; begin += kPass) {
    meet_group(group);  // what lay here has been read
#pragma unroll
    for (int j = 0; j < kPass / 8; j += 2) {
      if (begin + 8 * j >= N) break;
      float2 factor[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) factor[i] = *reinterpret_cast<const float2*>(&s.factors[info][begin + 8 * (j + i) + 2 * q]);
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        const float* from = sum[block] + begin / 2 + 4 * j;
        const int column = block * 64 + warp * 16;
        if constexpr (sizeof(T) == 2) {
          store_transposed(
              own + (8 * j + lane / 16 * 8 + lane % 8) * kRunStride<T> + (column + lane / 8 % 2 * 8) * 2,
              pack_bf16(from[0] * factor[0].x, from[1] * factor[0].y), pack_bf16(from[2] * factor[0].x, from[3] * factor[0].y),
              pack_bf16(from[4] * factor[1].x, from[5] * factor[1].y), pack_bf16(from[6] * factor[1].x, from[7] * factor[1].y));
        } else {
#pragma unroll
          for (int i = 0; i < 8; ++i)
            *reinterpret_cast<float*>(own + (8 * (j + i / 4) + 2 * q + i % 2) * kRunStride<T> +
                                      (column + g + i / 2 % 2 * 8) * 4) = from[i] * (i % 2 ? factor[i / 4].y : factor[i / 4].x);
        }
      }
    }
    meet_group(group);
    constexpr int kPieces = 128 * sizeof(T) / 16;  // of 16 bytes in a run
    if (n_columns == 128 && n * sizeof(T) % 16 == 0) {
#pragma unroll
      for (int i = 0; i < kPass * kPieces / 128; ++i) {
        const int row = i * (128 / kPieces) + thread / kPieces, piece = thread % kPieces;
        if (begin + row < n_rows)
          reinterpret_cast<uint4*>(out + static_cast<int64_t>(s.out_rows[info][begin + row]) * n + first)[piece] =
              *reinterpret_cast<const uint4*>(own + row * kRunStride<T> + piece * 16);
      }
    } else {
      for (int i = 0; i < kPass && begin + i < n_rows; ++i)
        if (thread < n_columns)
          out[static_cast<int64_t>(s.out_rows[info][begin + i]) * n + first + thread] =
              reinterpret_cast<const T*>(own + i * kRunStride<T>)[thread];
    }
  }
}

// SwiGLU. FP8: rows in BF16, from which launch_pack_inner makes those of the down product. BF16: packed for it at once.
template <WeightFormat F, int N>
__device__ void write_inner(const TensorGemmArgs& args, GateUpMemory<F>& s, int weight_tile, int info, bool last,
                            Sums<N, kBlocks>& sum) {
  const int thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32, group = threadIdx.x / 128, g = lane / 4,
            q = lane % 4;
  const int width = args.weight.n / 2, first_column = weight_tile * 8 + group * kBlocks * 32 + warp * 8 + g;
  const int n_rows = round_up_8(s.items[info].n_rows), packed_row = s.items[info].packed_row;
#pragma unroll
  for (int block = 0; block < kBlocks; ++block)
    // Past W's last row lies what shared memory held before. It may not even round the division that two columns share.
    if (first_column + 32 * block >= width)
#pragma unroll
      for (int i = 0; i < N / 2; ++i) sum[block][i] = 0.0f;
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    const float2 factors = *reinterpret_cast<const float2*>(&s.factors[info][8 * j + 2 * q]);
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const float factor = odd ? factors.y : factors.x;
      float gate[kBlocks], one[kBlocks];
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        gate[block] = sum[block][4 * j + odd] * factor;
        one[block] = 1.0f + __expf(fminf(-gate[block], 40.0f));  // beyond, the result is 0 to all digits that count
      }
      const float inverse = __fdividef(1.0f, one[0] * one[1]);  // one division for both
      const float silu[kBlocks] = {gate[0] * inverse * one[1], gate[1] * inverse * one[0]};
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        float& result = sum[block][4 * j + odd];
        result = silu[block] * (sum[block][4 * j + odd + 2] * factor);
      }
    }
  }
  if constexpr (F == WeightFormat::fp8) {  // as write_rows(), but of 16 rows of W eight are left
    constexpr int kPass = kInnerRows<tile_rows(F)>;
    uint8_t* own = s.out + group * kGroupInner<tile_rows(F)>;
    const int64_t columns = static_cast<int64_t>((args.weight.n_tiles + 15) / 16) * kGroup;
    __nv_bfloat16* out = args.inner_rows + packed_row * columns + weight_tile * 8 + group * kInnerColumns;
#pragma unroll
    for (int begin = 0; begin < N; begin += kPass) {
      const int n_pass = min(N - begin, kPass);
      meet_group(group);  // what lay here has been read
#pragma unroll
      for (int j = 0; j < n_pass / 8; j += 4) {
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
          uint8_t* to = own + (8 * j + lane) * kInnerStride + (block * 32 + warp * 8) * 2;
          const auto pair = [&](int i) {
            const float* from = sum[block] + begin / 2 + 4 * (j + i);
            return pack_bf16(from[0], from[1]);
          };
          if (j + 2 < n_pass / 8)
            store_transposed(to, pair(0), pair(1), pair(2), pair(3));
          else
            store_transposed(to, pair(0), pair(1));
        }
      }
      meet_group(group);
      constexpr int kPieces = kInnerColumns * 2 / 16;  // of a row
#pragma unroll
      for (int i = 0; i < n_pass * kPieces / 128; ++i) {
        const int row = i * (128 / kPieces) + thread / kPieces, piece = thread % kPieces;
        if (begin + row < n_rows)
          reinterpret_cast<uint4*>(out + (begin + row) * columns)[piece] =
              *reinterpret_cast<const uint4*>(own + row * kInnerStride + piece * 16);
      }
    }
  } else {  // a warpgroup's 64 columns are a block: half of it per block of 64 rows of W; one warpgroup after the other
    if (threadIdx.x == 0) bulk_store_read();  // the last result has left
    for (int turn = 0; turn < kGroups; ++turn) {
      meet<kConsumers, kGroups * 128>();
      if (turn == group) {
#pragma unroll
        for (int j = 0; j < N / 8; ++j)
#pragma unroll
          for (int odd = 0; odd < 2; ++odd) {
            const int r = 8 * j + 2 * q + odd;
#pragma unroll
            for (int block = 0; block < kBlocks; ++block) {
              const int k = block * 32 + warp * 8 + g, place = packed_place_bf16(k % 16);
              *reinterpret_cast<__nv_bfloat16*>(s.out + swizzled(r, k / 16 * 2 + place / 16) + place % 16) =
                  __float2bfloat16_rn(sum[block][4 * j + odd]);
            }
          }
        publish_to_async();
      }
      meet<kConsumers, kGroups * 128>();
      if (threadIdx.x == 0) {
        bulk_store(
            args.inner.data +
                (static_cast<int64_t>(weight_tile / kWeightTiles<kBlocks> * kGroups + turn) * args.inner.stride + packed_row) *
                    128,
            s.out, n_rows * 128);
        if (turn + 1 < kGroups) bulk_store_read();
      }
    }
  }
  if (F == WeightFormat::bf16 && last && threadIdx.x == 0) bulk_store_done();
}

template <WeightFormat F, GemmMode M, int N>
__device__ void run_item(const TensorGemmArgs& args, Memory<F, M>& s, Position& at, int weight_tile, int info, bool last) {
  Sums<N, kBlocks> sum;
  multiply<F, N>(args, s, at, s.items[info].expert, weight_tile, KRange(args, F), sum);
  if constexpr (M == GemmMode::gate_up)
    write_inner<F, N>(args, s, weight_tile, info, last, sum);
  else if constexpr (M == GemmMode::down)
    write_rows<__nv_bfloat16, N>(args, s, args.slots, weight_tile, info, sum);
  else if (args.brief_out)
    write_rows<__nv_bfloat16, N>(args, s, args.brief_out, weight_tile, info, sum);
  else
    write_rows<float, N>(args, s, args.out, weight_tile, info, sum);
}

template <WeightFormat F, GemmMode M>
__global__ void __launch_bounds__(kThreads, 1) tensor_gemm_kernel(const __grid_constant__ TensorGemmArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t raw[];
  let_next_start();
  Memory<F, M>& s = prepare<Memory<F, M>, M == GemmMode::gate_up>(raw, args.n_paired);
  wait_for_previous();
  if (threadIdx.x >= kGroups * 128) {
    give_registers<40>();
    produce<F, M>(args, s, KRange(args, F));
  } else {
    take_registers<232>();
    Position at;
    at.n_paired = args.n_paired;
    int info = 0;
    const int n_items = count_items<Memory<F, M>>(args), step = gridDim.x / args.n_paired;
    for (int index = blockIdx.x / args.n_paired; index < n_items; index += step) {
      barrier_wait(&s.full[at.stage], at.parity);  // with its first stage the producers have said what the item is
      const int weight_tile = s.weight_tiles[info];
      const bool last = index + step >= n_items;
      const auto run = [&]<int N>() { run_item<F, M, N>(args, s, at, weight_tile, info, last); };
      constexpr bool kFine = takes_any_16<F, M>;
      switch (operand_rows<kFine>(s.items[info].n_rows)) {
        case 16: run.template operator()<16>(); break;
        case 32: run.template operator()<32>(); break;
        case 48: run.template operator()<kFine ? 48 : 64>(); break;
        case 64: run.template operator()<64>(); break;
        case 80: run.template operator()<kFine ? 80 : 96>(); break;
        case 96: run.template operator()<96>(); break;
        case 112: run.template operator()<kFine ? 112 : 128>(); break;
        case 128: run.template operator()<128>(); break;
        default: run.template operator()<tile_rows(F)>();
      }
      if (++info == kInfos) info = 0;
    }
  }
  if (args.n_paired == 2) cluster_meet();  // whose memory the other still fills or tells must not go
#elif __CUDA_ARCH__ == 900
#error "Hopper's code needs the target 90a"
#endif
}

// Pairs of blocks that run at once: not half of the multiprocessors where a part of the device has an odd number of them.
int pairs_at_once() {
  static const int n = clusters_at_once(tensor_gemm_kernel<WeightFormat::fp8, GemmMode::down>, 2, kThreads,
                                        sizeof(Memory<WeightFormat::fp8, GemmMode::down>) + 1024);
  return n;
}

// Whether pairs are worth it: most weights have two row tiles, their rows come out even, and few multiprocessors stay idle.
bool wants_pairs(const TensorGemmArgs& args) {
  const int n_rows = args.mode == GemmMode::linear ? args.n_rows : args.rows_each;
  return n_rows > tile_rows(args.weight.format) && divide_up(args.weight.n_tiles, kWeightTiles<kBlocks>) % 2 == 0 &&
         64 * pairs_at_once() >= 31 * n_multiprocessors();
}

}  // namespace

int n_multiprocessors() {
  static const int n = [] {
    int device = 0, count = 0;
    CUDA_CHECK(cudaGetDevice(&device));
    CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
    return count;
  }();
  return n;
}

bool has_tensor_gemm() {
  static const bool has = [] {
    cudaFuncAttributes attributes;
    CUDA_CHECK(cudaFuncGetAttributes(&attributes, tensor_gemm_kernel<WeightFormat::fp8, GemmMode::linear>));
    return attributes.binaryVersion == 90 && attributes.ptxVersion != 80;  // 80: sm_80 code, compiled by the driver
  }();
  return has;
}

void launch_tensor_gemm(const Queue& queue, TensorGemmArgs args) {
  if (args.mode == GemmMode::linear) {
    args.n_splits = tensor_splits(n_multiprocessors(), shape_of(args.weight), args.n_rows);
    if (args.n_splits > 1) return launch_tensor_split(queue, args);
  }
  if (wants_pairs(args)) args.n_paired = 2;
  const int n_blocks = args.n_paired == 2 ? 2 * pairs_at_once() : n_multiprocessors();
  const auto run = [&](auto kernel, size_t bytes) {
    launch_clusters(queue, args.n_paired, kernel, n_blocks, kThreads, bytes + 1024, args);
  };
  const auto run_format = [&]<WeightFormat F>() {
    switch (args.mode) {
      case GemmMode::linear: return run(tensor_gemm_kernel<F, GemmMode::linear>, sizeof(Memory<F, GemmMode::linear>));
      case GemmMode::gate_up: return run(tensor_gemm_kernel<F, GemmMode::gate_up>, sizeof(Memory<F, GemmMode::gate_up>));
      case GemmMode::down: return run(tensor_gemm_kernel<F, GemmMode::down>, sizeof(Memory<F, GemmMode::down>));
    }
  };
  if (args.weight.format == WeightFormat::fp8)
    run_format.template operator()<WeightFormat::fp8>();
  else
    run_format.template operator()<WeightFormat::bf16>();
}

}  // namespace sigmoe::cuda
