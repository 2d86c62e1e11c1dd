// Attention of a few decode rows in one kernel: norms and RoPE of the row's queries and its key, the store of key and value,
// split-KV attention over BF16 pages, and the sum over splits. Rows are a sequence each, of up to 8,192 keys.
//
// Bound: latency: a megabyte of keys and values, but one dependent step behind the other. A cluster of eight blocks has a row
// and a KV head; a block has every eighth page of keys. Whatever is older than the kernel ahead is in shared memory or
// registers before that is done: pages, angles, norms' weights. Then a warp makes each query, two the new key and value; eight
// warps attend, two to a quarter of the page's keys, each with half of the values' dims; a head's sums go to the block that
// owns it. Norms and RoPE are those of qk_norm_rope_store, keys and sums go in the order of split_attention: the bits are the
// same.
#include "cuda/few_heads.cuh"
#include "cuda/few_parts.cuh"

namespace sigmoe::cuda {
namespace {

using namespace few;

__global__ void __launch_bounds__(kThreads, 2) few_attention_kernel(const __grid_constant__ AttentionArgs args) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) std::byte raw[];
  AttentionShared& shared = *reinterpret_cast<AttentionShared*>(raw);
  const int warp = threadIdx.x / 32, n_buffers = args.n_buffers;
  const int rank = blockIdx.x, kv_head = blockIdx.y, t = blockIdx.z, n_group = args.shape.n_heads / args.shape.n_kv_heads;
  // A step's positions and pages and the keys of older tokens are older than the kernel ahead of the one ahead.
  const int32_t* pages = args.batch.page_tables + static_cast<int64_t>(t) * args.batch.max_pages;
  const int first_page = pages[min(rank, args.batch.max_pages - 1)];  // before it is known whether the row has it
  const int length = args.batch.positions[t] + 1, n_splits = (length + kPageTokens - 1) / kPageTokens;
  if (rank >= n_splits) return;
  const int n_blocks = min(n_splits, kCluster), own_head = rank + n_blocks * warp;
  const Owner own(own_head, n_group, n_blocks, n_splits);
  if (threadIdx.x == 0) {
    barrier_init(&shared.arrived, 1);
    publish_barriers();
    barrier_expect(&shared.arrived, own.n_parts * kPartBytes);
  }
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
  for (int i = 0, split = rank; i < n_buffers; ++i, split += kCluster) {
    if (split < n_splits) copy_page(args, page_of(args, split, i ? pages[split] : first_page, kv_head, length), shared.page(i));
    commit_copies();
  }
  Head query_head(args, Head::Kind::query, kv_head, min(warp, n_group - 1), length - 1);
  const bool has_new = (n_splits - 1) % kCluster == rank && warp < 2;
  Head new_head(args, warp == 0 ? Head::Kind::key : Head::Kind::value, kv_head, 0, length - 1);
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");  // the barriers of all blocks are ready
  wait_for_previous();
  query_head.load(args, t);
  if (has_new) new_head.load(args, t);
  // The next kernel starts by asking for megabytes of weights: not before this one has its data, or all of it waits in line.
  let_next_start();
  query_head.norm_and_rotate(args);
  if (warp < n_group) query_head.keep_query(shared.queries[warp]);
  if (has_new) new_head.norm_and_rotate(args);

  uint32_t query[kSteps][4];
  for (int split = rank, i = 0;; i = i + 1 == n_buffers ? 0 : i + 1) {
    PageBuffer& buffer = shared.page(i);
    const Page page = page_of(args, split, split < kCluster ? first_page : pages[split], kv_head, length);
    if (page.is_last && has_new) new_head.keep_new(args, page, buffer);
    wait_for_page(n_buffers);
    __syncthreads();
    if (split == rank) load_queries(query, shared, n_group);
    attend(query, page.n_keys, buffer, shared);
    __syncthreads();
    if (warp < n_group) send(Owner(warp, n_group, n_blocks, n_splits), split, page.n_keys, warp, buffer, n_buffers, shared);
    split += kCluster;
    if (split >= n_splits) break;
    __syncthreads();
    if (const int later = split + kCluster * (n_buffers - 1); later < n_splits)
      copy_page(args, page_of(args, later, pages[later], kv_head, length), buffer);
    commit_copies();
  }
  if (own_head >= n_group) return;
  wait_for_parts(&shared.arrived);
  const int64_t head = static_cast<int64_t>(t) * args.shape.n_heads + kv_head * n_group + own_head;
  add_parts(own, n_splits, shared.parts(n_buffers), args.out + head * kHeadDim);
#endif
}

}  // namespace

void launch_few_attention(const Queue& queue, const BatchView& batch, const AttentionShape& shape, const FewAttention& from,
                          const KvView& kv, float* out) {
  const int n_buffers = buffers_for(batch.max_pages);
  const AttentionArgs args{batch, shape,    from, static_cast<__nv_bfloat16*>(kv.k), static_cast<__nv_bfloat16*>(kv.v),
                           out,   n_buffers};
  const int shared_bytes =
      static_cast<int>(sizeof(AttentionShared) + n_buffers * sizeof(PageBuffer)) + most_parts(batch.max_pages) * kPartBytes;
  launch_clusters(queue, kCluster, few_attention_kernel, dim3(kCluster, shape.n_kv_heads, batch.n_tokens), kThreads,
                  shared_bytes, args);
}

}  // namespace sigmoe::cuda
