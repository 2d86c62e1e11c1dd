// TPipe, TQue and TBuf: local memory handed out once per kernel, and the queue protocol with the hardware events it takes.
#pragma once

#include "ascend/twin/tensor.h"

namespace AscendC {

constexpr int kMaxQueueBuffers = 8;  // of one position: hardware events of a pipe pair

// Pipe that fills a buffer of this position, and pipe that empties it.
constexpr pipe_t twin_filler(TPosition position) {
  switch (position) {
    case TPosition::A2:
    case TPosition::B2: return PIPE_MTE1;
    case TPosition::CO1: return PIPE_M;
    case TPosition::VECOUT:
    case TPosition::VECCALC: return PIPE_V;
    default: return PIPE_MTE2;
  }
}
constexpr pipe_t twin_emptier(TPosition position) {
  switch (position) {
    case TPosition::A1:
    case TPosition::B1:
    case TPosition::C1: return PIPE_MTE1;
    case TPosition::A2:
    case TPosition::B2: return PIPE_M;
    case TPosition::CO1: return PIPE_FIX;
    case TPosition::VECOUT: return PIPE_MTE3;
    default: return PIPE_V;
  }
}

template <TPosition pos = TPosition::VECCALC>
class TBuf {
 public:
  template <typename T>
  LocalTensor<T> Get(TWIN_WHERE) {
    return GetWithOffset<T>(bytes() / sizeof(T), 0, where);
  }
  template <typename T>
  LocalTensor<T> Get(std::uint32_t n, TWIN_WHERE) {
    return GetWithOffset<T>(n, 0, where);
  }
  template <typename T>
  LocalTensor<T> GetWithOffset(std::uint32_t n, std::uint32_t offset_bytes, TWIN_WHERE) {
    if (!buffer_) twin::fail(where, "TBuf: InitBuffer was not called");
    if (std::uint64_t{offset_bytes} + std::uint64_t{n} * sizeof(T) > buffer_->bytes)
      twin::fail(where, "TBuf: " + std::to_string(n) + " elements at byte " + std::to_string(offset_bytes) +
                            " of a buffer of " + std::to_string(buffer_->bytes) + " bytes");
    std::byte* base = twin::self->memory->region(buffer_->arena).data.get() + buffer_->offset;
    return LocalTensor<T>({base + offset_bytes, static_cast<std::uint32_t>(n * sizeof(T)), pos, buffer_, 0});
  }

 private:
  friend class TPipe;
  std::uint32_t bytes() const { return buffer_ ? buffer_->bytes : 0; }
  twin::Buffer* buffer_ = nullptr;
};

// A queue between the pipe that fills position src and the one that empties position dst.
template <TPosition src, TPosition dst, std::int32_t depth>
class TQueBind {
 public:
  static constexpr pipe_t kFill = twin_filler(src), kEmpty = twin_emptier(dst);

  template <typename T>
  LocalTensor<T> AllocTensor(TWIN_WHERE);
  template <typename T>
  bool EnQue(const LocalTensor<T>& tensor, TWIN_WHERE);
  template <typename T>
  LocalTensor<T> DeQue(TWIN_WHERE);
  template <typename T>
  void FreeTensor(LocalTensor<T>& tensor, TWIN_WHERE);
  bool HasTensorInQue() const { return queued_ > 0; }
  bool VacantInQue() const { return queued_ < depth; }

 private:
  friend class TPipe;
  twin::Buffer* mine(const twin::Local& local, const char* name, twin::Where where) const;

  std::array<twin::Buffer*, 16> buffers_{};
  std::array<twin::Buffer*, 16> fifo_{};
  int n_ = 0, next_ = 0, queued_ = 0;
};

template <TPosition pos, std::int32_t depth>
class TQue : public TQueBind<pos, pos, depth> {};

class TPipe {
 public:
  TPipe(TWIN_WHERE) {
    if (!twin::self) twin::fail(where, "TPipe: made outside a kernel");
    if (twin::self->pipe) twin::fail(where, "TPipe: a kernel has one");
    twin::self->pipe = this;
  }
  ~TPipe() { twin::self->pipe = nullptr; }
  TPipe(const TPipe&) = delete;
  TPipe& operator=(const TPipe&) = delete;

  template <TPosition src, TPosition dst, std::int32_t depth>
  bool InitBuffer(TQueBind<src, dst, depth>& queue, std::uint8_t n, std::uint32_t bytes, TWIN_WHERE) {
    if (queue.n_) twin::fail(where, "InitBuffer: this queue has its buffers already");
    int& count = queue_buffers_[static_cast<int>(src)];
    count += n;
    if (n == 0 || count > kMaxQueueBuffers)
      twin::fail(where, "InitBuffer: " + std::to_string(count) +
                            " buffers in the queues of one position, of which there may be 1 to " +
                            std::to_string(kMaxQueueBuffers));
    for (int i = 0; i < n; ++i) queue.buffers_[i] = carve(src, bytes, twin::Buffer::free, where);
    queue.n_ = n;
    return true;
  }
  template <TPosition pos>
  bool InitBuffer(TBuf<pos>& buf, std::uint32_t bytes, TWIN_WHERE) {
    if (buf.buffer_) twin::fail(where, "InitBuffer: this TBuf has its memory already");
    buf.buffer_ = carve(pos, bytes, twin::Buffer::always, where);
    return true;
  }

  // Event ids of a pair of pipes: Fetch names a free one, Alloc keeps it until Release.
  TEventID FetchEventID(HardEvent event, TWIN_WHERE) { return take(event, false, where); }
  template <HardEvent event>
  TEventID FetchEventID(TWIN_WHERE) {
    return take(event, false, where);
  }
  template <HardEvent event>
  TEventID AllocEventID(TWIN_WHERE) {
    return take(event, true, where);
  }
  template <HardEvent event>
  void ReleaseEventID(TEventID id, TWIN_WHERE) {
    if (!twin::checking()) return;
    twin::Event& held = twin::self->events[static_cast<int>(event)][id];
    if (!held.taken) twin::fail(where, "ReleaseEventID: this event id is not allocated");
    held.taken = false;
  }

  // The twin's own: the lowest free id of the pair. Ids need no books while nothing is checked.
  static TEventID take(HardEvent event, bool keep, twin::Where where) {
    if (!twin::checking()) return 0;
    auto& ids = twin::self->events[static_cast<int>(event)];
    for (int id = 0; id < 8; ++id)
      if (!ids[id].taken && !ids[id].set) {
        ids[id].taken = keep;
        return static_cast<TEventID>(id);
      }
    twin::fail(where, "all 8 event ids of these two pipes are in use");
  }

 private:
  twin::Buffer* carve(TPosition position, std::uint32_t bytes, twin::Buffer::State state, twin::Where where) {
    const twin::Arena arena = twin::arena_of(position);
    const int a = static_cast<int>(arena);
    twin::Core& core = *twin::self;
    const std::uint32_t align = twin::kArenaAlign[a];
    bytes = (bytes + 31) / 32 * 32;
    const std::uint32_t offset = (core.used[a] + align - 1) / align * align;
    if (bytes == 0 || std::uint64_t{offset} + bytes > twin::kUsableBytes[a])
      twin::fail(where, "InitBuffer: " + std::to_string(bytes) + " bytes of " + twin::name_of(arena) + ", of which " +
                            std::to_string(offset) + " of " + std::to_string(twin::kUsableBytes[a]) + " are taken");
    core.used[a] = offset + bytes;
    twin::Region& region = core.memory->region(arena);
    if (twin::checking()) {
      std::memset(region.data.get() + offset, twin::kPoison, bytes);
      std::memset(region.valid.data() + offset, 0, bytes);
      std::fill_n(region.blocks.begin() + offset / twin::kBlock, bytes / twin::kBlock, twin::BlockState{});
    }
    return &core.buffers.emplace_back(twin::Buffer{arena, offset, bytes, state});
  }

  std::array<int, static_cast<int>(TPosition::MAX)> queue_buffers_{};
};

inline TPipe* GetTPipePtr() { return twin::self->pipe; }

template <TPosition src, TPosition dst, std::int32_t depth>
template <typename T>
LocalTensor<T> TQueBind<src, dst, depth>::AllocTensor(twin::Where where) {
  twin::Buffer* buffer = nullptr;
  for (int i = 0; i < n_ && !buffer; ++i) {
    twin::Buffer* candidate = buffers_[(next_ + i) % n_];
    if (candidate->state == twin::Buffer::free) buffer = candidate, next_ = (next_ + i + 1) % n_;
  }
  if (!buffer)
    twin::fail(where, n_ ? "AllocTensor: every buffer of the queue is in use (FreeTensor missing?)"
                         : "AllocTensor: InitBuffer was not called");
  twin::Region& region = twin::self->memory->region(buffer->arena);
  if (twin::checking()) {
    if (buffer->freed_event >= 0) {  // its last user has let go of it
      twin::Event& event = twin::self->events[kEmpty * 8 + kFill][buffer->freed_event];
      twin::learn(*twin::self, kFill, event.clock);
      event = {};
      buffer->freed_event = -1;
    }
    std::memset(region.data.get() + buffer->offset, twin::kPoison, buffer->bytes);
    std::memset(region.valid.data() + buffer->offset, 0, buffer->bytes);
  }
  buffer->state = twin::Buffer::allocated;
  buffer->taken = where;
  ++buffer->use;
  return LocalTensor<T>({region.data.get() + buffer->offset, buffer->bytes, src, buffer, buffer->use});
}

template <TPosition src, TPosition dst, std::int32_t depth>
twin::Buffer* TQueBind<src, dst, depth>::mine(const twin::Local& local, const char* name, twin::Where where) const {
  for (int i = 0; i < n_; ++i)
    if (buffers_[i] == local.buffer) {
      if (local.buffer->use != local.use) twin::fail(where, std::string(name) + ": a tensor of an earlier AllocTensor");
      return local.buffer;
    }
  twin::fail(where, std::string(name) + ": a tensor of another queue");
}

template <TPosition src, TPosition dst, std::int32_t depth>
template <typename T>
bool TQueBind<src, dst, depth>::EnQue(const LocalTensor<T>& tensor, twin::Where where) {
  twin::Buffer* buffer = mine(tensor.local(), "EnQue", where);
  if (buffer->state != twin::Buffer::allocated && buffer->state != twin::Buffer::dequeued)
    twin::fail(where, buffer->state == twin::Buffer::queued ? "EnQue: the tensor is in the queue already"
                                                            : "EnQue: the tensor was freed");
  if (queued_ >= depth) twin::fail(where, "EnQue: the queue holds " + std::to_string(depth) + " tensors already, its depth");
  if (twin::checking()) {
    buffer->queued_event = TPipe::take(static_cast<HardEvent>(kFill * 8 + kEmpty), true, where);
    twin::Event& event = twin::self->events[kFill * 8 + kEmpty][buffer->queued_event];
    event.set = event.by_queue = true;
    event.clock = twin::clock_after(*twin::self, kFill);
  }
  buffer->state = twin::Buffer::queued;
  fifo_[queued_++] = buffer;
  return true;
}

template <TPosition src, TPosition dst, std::int32_t depth>
template <typename T>
LocalTensor<T> TQueBind<src, dst, depth>::DeQue(twin::Where where) {
  if (queued_ == 0) twin::fail(where, "DeQue: nothing was enqueued");
  twin::Buffer* buffer = fifo_[0];
  --queued_;
  for (int i = 0; i < queued_; ++i) fifo_[i] = fifo_[i + 1];
  if (twin::checking()) {
    twin::Event& event = twin::self->events[kFill * 8 + kEmpty][buffer->queued_event];
    twin::learn(*twin::self, kEmpty, event.clock);
    event = {};
    buffer->queued_event = -1;
  }
  buffer->state = twin::Buffer::dequeued;
  std::byte* base = twin::self->memory->region(buffer->arena).data.get();
  return LocalTensor<T>({base + buffer->offset, buffer->bytes, dst, buffer, buffer->use});
}

template <TPosition src, TPosition dst, std::int32_t depth>
template <typename T>
void TQueBind<src, dst, depth>::FreeTensor(LocalTensor<T>& tensor, twin::Where where) {
  twin::Buffer* buffer = mine(tensor.local(), "FreeTensor", where);
  if (buffer->state == twin::Buffer::free) twin::fail(where, "FreeTensor: the tensor was freed already");
  if (buffer->state == twin::Buffer::queued) twin::fail(where, "FreeTensor: the tensor is in its queue");
  if (twin::checking()) {
    buffer->freed_event = TPipe::take(static_cast<HardEvent>(kEmpty * 8 + kFill), true, where);
    twin::Event& event = twin::self->events[kEmpty * 8 + kFill][buffer->freed_event];
    event.set = event.by_queue = true;
    event.clock = twin::clock_after(*twin::self, kEmpty);
  }
  buffer->state = twin::Buffer::free;
}

}  // namespace AscendC
