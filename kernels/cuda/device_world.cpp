// The host's side of comm.h: who shares a GPU with whom, memory that all ranks reach, and the word that ends waits.
#include <algorithm>
#include <set>
#include <string>
#include <utility>

#include "backend/node_comm.h"
#include "cuda/comm.h"
#include "cuda/comm_many.h"
#include "cuda/nccl.h"
#include "cuda/ops.h"

namespace sigmoe::cuda {

// Memory of one rank that the others reach too. From a pool of its own: GPUs that map all of each other's memory would have to
// meet in every allocation, and one of them may be waiting for a kernel of the other.
struct PeerMemory {
  std::shared_ptr<cudaMemPool_t> pool;
  int device = 0;
  void* data = nullptr;
  ~PeerMemory() {
    int current = 0;
    cudaGetDevice(&current);
    cudaSetDevice(device);
    cudaFree(data);
    cudaSetDevice(current);
  }
};

namespace {

struct Place {  // of one rank
  int device;
  int n_multiprocessors;
  int major = 0;  // of its compute capability
};

std::shared_ptr<cudaMemPool_t> make_pool(int device, const std::vector<Place>& places) {
  cudaMemPoolProps properties = {};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.handleTypes = cudaMemHandleTypeNone;
  properties.location = {cudaMemLocationTypeDevice, device};
  cudaMemPool_t pool = nullptr;
  CUDA_CHECK(cudaMemPoolCreate(&pool, &properties));
  std::shared_ptr<cudaMemPool_t> owned(new cudaMemPool_t(pool), [](cudaMemPool_t* p) {
    cudaMemPoolDestroy(*p);
    delete p;
  });
  for (const Place& place : places) {
    cudaMemAccessDesc access = {};
    access.location = {cudaMemLocationTypeDevice, place.device};
    access.flags = cudaMemAccessFlagsProtReadWrite;
    if (place.device != device) CUDA_CHECK(cudaMemPoolSetAccess(pool, &access, 1));
  }
  return owned;
}

std::vector<Place> places_of(Comm& comm, int device) {
  auto own = std::make_shared<Place>(Place{device, 0, 0});
  CUDA_CHECK(cudaDeviceGetAttribute(&own->n_multiprocessors, cudaDevAttrMultiProcessorCount, device));
  CUDA_CHECK(cudaDeviceGetAttribute(&own->major, cudaDevAttrComputeCapabilityMajor, device));
  std::vector<Place> places;
  for (const auto& place : comm.exchange(own)) places.push_back(*static_cast<const Place*>(place.get()));
  return places;
}

bool some_share(const std::vector<Place>& places) {
  std::set<int> devices;
  for (const Place& place : places) devices.insert(place.device);
  return devices.size() < places.size();
}

// GPUs of several processes are told apart by what they are called everywhere.
bool some_share(NodeComm& comm, int device) {
  cudaDeviceProp properties;
  CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  std::set<std::string> names;
  for (const std::string& name : comm.exchange_bytes({properties.uuid.bytes, sizeof properties.uuid.bytes})) names.insert(name);
  return static_cast<int>(names.size()) < comm.world();
}

}  // namespace

ExchangeLayout::ExchangeLayout(int width, int world) : width(width) {
  const auto take = [this](size_t n, size_t each) {
    const size_t at = bytes;
    bytes = (bytes + n * each + 255) / 256 * 256;
    return at;
  };
  const size_t n = width / 4, R = world, segment = (n + R - 1) / R;
  one_shot_counters = take(kOneShotRows * 4, 4);
  two_shot_counters = take(kTwoShotBlocks, 4);
  gather_counters = take(kGatherBlocks, 4);
  gather_flags = take(2 * kGatherBlocks * kMaxRanks, 4);
  meeting_counter = take(1, 4);
  meeting_flags = take(kMaxRanks, 4);
  partial_flags = take(kTwoShotRows * kMaxRanks, 4);
  reduced_flags = take(kTwoShotRows * kMaxRanks, 4);
  row_counters = take(2 * kRowTiles, 4);
  row_words = take(2 * R * 2 * n, 16);
  one_shot = take(2 * kOneShotRows * R * 2 * n, 16);
  partial = take(2 * kTwoShotRows * R * segment, 16);
  reduced = take(2 * kTwoShotRows * n, 16);
}

std::unique_ptr<DeviceWorld> DeviceWorld::join(Comm& comm, int device, cudaStream_t stream) {
  // What another process has is out of our kernels' reach.
  if (auto* nodes = dynamic_cast<NodeComm*>(&comm))
    return some_share(*nodes, device) ? nullptr : std::make_unique<DeviceWorld>(comm, device, stream, Way::nccl);
  const std::vector<Place> places = places_of(comm, device);
  if (some_share(places)) return nullptr;
  bool reach = comm.world() <= kMaxRanks;
  for (const Place& a : places)
    for (const Place& b : places) {
      int can = 1;
      if (a.device != b.device) CUDA_CHECK(cudaDeviceCanAccessPeer(&can, a.device, b.device));
      reach = reach && can;
    }
  return std::make_unique<DeviceWorld>(comm, device, stream, reach ? Way::peer_memory : Way::nccl);
}

DeviceWorld::DeviceWorld(Comm& comm, int device, cudaStream_t stream, Way way) : comm_(comm), device_(device), stream_(stream) {
  if (way == Way::nccl) {
    nccl_ = std::make_unique<Nccl>(comm);
    return;
  }
  int major = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  clusters_ = major >= 9;
  const std::vector<Place> places = places_of(comm, device);
  view_.rank = comm.rank();
  view_.world = comm.world();
  int fewest = kTwoShotBlocks;
  for (const Place& place : places) fewest = std::min(fewest, place.n_multiprocessors);
  view_.n_blocks = fewest;
  all_hopper_ = std::ranges::all_of(places, [](const Place& place) { return place.major == 9; });
  pool_ = make_pool(device, places);
  std::shared_ptr<uint32_t> word;
  if (comm.rank() == 0) {
    uint32_t* memory = nullptr;
    CUDA_CHECK(cudaHostAlloc(reinterpret_cast<void**>(&memory), sizeof(uint32_t), cudaHostAllocPortable | cudaHostAllocMapped));
    *memory = 0;
    word = std::shared_ptr<uint32_t>(memory, [](uint32_t* p) { cudaFreeHost(p); });
  }
  stop_ = std::static_pointer_cast<uint32_t>(comm.exchange(word)[0]);
  view_.stop = stop_.get();
  comm.on_shut_down([stop = stop_] { __atomic_store_n(stop.get(), 1u, __ATOMIC_RELEASE); });
}

DeviceWorld::~DeviceWorld() {
  cudaStreamSynchronize(stream_);
  if (staging_) cudaFree(staging_);
}

// One piece of memory on every rank, cleared before any rank can write to another's, in place of what `held` has.
void DeviceWorld::share(size_t bytes, const char* what, std::vector<std::shared_ptr<PeerMemory>>& held) {
  auto own = std::make_shared<PeerMemory>();
  own->pool = pool_;
  own->device = device_;
  const cudaError_t status = cudaMallocFromPoolAsync(&own->data, bytes, *pool_, stream_);
  if (status == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    throw EngineError(ErrorCode::out_of_memory,
                      std::string(what) + ": " + std::to_string((bytes >> 20) + 1) + " MiB of GPU memory asked for",
                      "lower memoryUtilization, kvCacheTokens or maxBatchedTokens");
  }
  CUDA_CHECK(status);
  CUDA_CHECK(cudaMemsetAsync(own->data, 0, bytes, stream_));
  CUDA_CHECK(cudaStreamSynchronize(stream_));
  std::vector<std::shared_ptr<PeerMemory>> all;
  for (const auto& memory : comm_.exchange(own)) all.push_back(std::static_pointer_cast<PeerMemory>(memory));
  // The last rank to let go of the old memory frees it, on the other GPUs too, and waits for their kernels: none of those may
  // be waiting for this rank's.
  held = std::move(all);
  comm_.exchange(nullptr);
}

void DeviceWorld::reserve(int width) {
  if (layout_.width == width) return;
  if (width % 4 != 0 || width > kMaxPeerWidth)
    throw EngineError(ErrorCode::unsupported,
                      "sums of rows of " + std::to_string(width) + " over several GPUs: a multiple of 4 up to " +
                          std::to_string(kMaxPeerWidth) + " is what the kernels take",
                      "use tensorParallelSize 1");
  layout_ = ExchangeLayout(width, comm_.world());
  share(layout_.bytes, "exchange between GPUs", exchange_);
  for (size_t r = 0; r < exchange_.size(); ++r) view_.memory[r] = static_cast<std::byte*>(exchange_[r]->data);
}

void DeviceWorld::reduce_add_rms_norm(const Queue& queue, const ReduceArgs& args, float* sums) {
  if (nccl_) {
    launch_sum_slots(queue, args.addend, false, args.n_slots, args.n_tokens, args.width, sums);
    nccl_->all_reduce(sums, static_cast<size_t>(args.n_tokens) * args.width, queue.stream);
    return launch_reduce_add_rms_norm(queue, args.residual, sums, 1, args.weight, args.eps, args.n_tokens, args.width, args.out,
                                      args.twin);
  }
  reserve(args.width);
  const int one_shot = one_shot_rows_ == 0 ? best_one_shot_rows(view_.world) : std::min(one_shot_rows_, kOneShotRows);
  const bool small = args.n_tokens <= one_shot;
  for (int row = 0; row < args.n_tokens; row += small ? kOneShotRows : kTwoShotRows) {
    const auto from = static_cast<int64_t>(row) * args.width;
    ReduceArgs part = args;
    part.n_tokens = std::min(args.n_tokens - row, kTwoShotRows);
    part.residual += from;
    part.addend += from * args.n_slots;
    if (part.out) part.out += from;
    if (part.twin) part.twin = static_cast<uint16_t*>(part.twin) + from;
    if (small)
      launch_one_shot_reduce(queue, view_, layout_, part, clusters_);
    else
      launch_two_shot_reduce(queue, view_, layout_, part);
  }
}

RankFacts DeviceWorld::facts() const {
  return {nccl_ ? RankFacts::Way::nccl : RankFacts::Way::peer_memory, comm_.world(), all_hopper_};
}

void DeviceWorld::reduce_many(const Queue& queue, const ManyNormArgs& args, void* twin) {
  reserve(args.width);
  launch_many_reduce(queue, view_, layout_, args, twin);
}

RowExchange DeviceWorld::row_exchange(int width, int area) {
  reserve(width);
  const size_t words = static_cast<size_t>(view_.world) * 2 * (width / 4) * 16;
  return {view_, layout_.row_words + area * words, layout_.row_counters + area * kRowTiles * sizeof(uint32_t)};
}

float* DeviceWorld::gather_part(const std::vector<int64_t>& widths, int n_rows, bool& grown) {
  int64_t most = 0, total = 0, before = 0;
  for (size_t r = 0; r < widths.size(); ++r) {
    most = std::max(most, widths[r]);
    if (static_cast<int>(r) < comm_.rank()) before += widths[r];
    total += widths[r];
  }
  const size_t wanted = static_cast<size_t>(n_rows) * (nccl_ ? total : most);
  grown = wanted > gather_floats_;
  if (grown) {
    cudaStreamCaptureStatus capturing;
    CUDA_CHECK(cudaStreamIsCapturing(stream_, &capturing));
    SIGMOE_CHECK(capturing == cudaStreamCaptureStatusNone, "gathered rows must have grown before a step is recorded");
    CUDA_CHECK(cudaStreamSynchronize(stream_));
    if (nccl_) {
      if (staging_) CUDA_CHECK(cudaFree(std::exchange(staging_, nullptr)));
      CUDA_CHECK(cudaMalloc(&staging_, wanted * sizeof(float)));
    } else {
      share(wanted * sizeof(float), "logits to gather", gather_parts_);
    }
    gather_floats_ = wanted;
  }
  if (nccl_) return staging_ + static_cast<size_t>(n_rows) * before;
  return static_cast<float*>(gather_parts_[comm_.rank()]->data);
}

void DeviceWorld::gather(const Queue& queue, const std::vector<int64_t>& widths, int n_rows, float* out) {
  GatherArgs args;
  args.n_rows = n_rows;
  args.out = out;
  std::vector<size_t> counts;
  for (size_t r = 0; r < widths.size(); ++r) {
    args.total += static_cast<int>(widths[r]);
    counts.push_back(static_cast<size_t>(n_rows) * widths[r]);
    if (nccl_) continue;
    args.widths[r] = static_cast<int>(widths[r]);
    args.parts[r] = static_cast<const float*>(gather_parts_[r]->data);
  }
  if (!nccl_) {
    reserve(layout_.width > 0 ? layout_.width : 4);
    return launch_gather(queue, view_, layout_, args);
  }
  nccl_->all_gather(staging_, counts, queue.stream);
  const float* from = staging_;
  int64_t column = 0;
  for (size_t r = 0; r < widths.size(); from += counts[r], column += widths[r], ++r)
    launch_copy_rows(queue, from, nullptr, widths[r], out + column, nullptr, args.total, n_rows, static_cast<int>(widths[r]));
}

void DeviceWorld::meet(const Queue& queue) {
  reserve(layout_.width > 0 ? layout_.width : 4);
  launch_meeting(queue, view_, layout_);
}

void DeviceWorld::read_next(const Queue& queue, size_t bytes) {
  if (yardstick_bytes_ < bytes) {
    share(2 * bytes, "memory to measure the links with", yardsticks_);
    yardstick_bytes_ = bytes;
  }
  const auto* next = static_cast<const std::byte*>(yardsticks_[(view_.rank + 1) % view_.world]->data);
  auto* own = static_cast<std::byte*>(yardsticks_[view_.rank]->data) + yardstick_bytes_;
  CUDA_CHECK(cudaMemcpyAsync(own, next, bytes, cudaMemcpyDeviceToDevice, queue.stream));
}

void DeviceWorld::check() const {
  if (stop_ && __atomic_load_n(stop_.get(), __ATOMIC_ACQUIRE) != 0)
    throw EngineError(ErrorCode::device, "a sum over GPUs was waited for: another rank has failed, hangs or was shut down",
                      "dispose the model and load it again");
}

}  // namespace sigmoe::cuda
