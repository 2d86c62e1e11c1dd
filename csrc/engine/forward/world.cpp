#include "engine/forward/world.h"

#include <utility>

#include "backend/node_comm.h"
#include "backend/thread_name.h"
#include "engine/nodes/step_codec.h"

namespace sigmoe {

World::World(int n_ranks, const MakeRank& make_rank, std::shared_ptr<Node> node) : node_(std::move(node)) {
  const int n_here = node_ ? n_ranks / node_->count() : n_ranks, first = node_ ? node_->index() * n_here : 0;
  if (n_ranks > 1) comms_ = node_ ? make_node_world(node_, n_here) : make_thread_world(n_here);
  for (int rank = 0; rank < n_here; ++rank)
    runners_.push_back(make_rank(first + rank, comms_.empty() ? nullptr : comms_[rank].get()));
  if (n_ranks == 1) return;
  for (int rank = 1; rank < n_here; ++rank) threads_.emplace_back([this, rank] { rank_loop(rank); });
  try {
    on_every_rank([this](int rank) { runners_[rank]->backend().join(*comms_[rank]); });
  } catch (...) {
    stop();
    throw;
  }
}

World::~World() {
  // Said before anything goes that nodes hold together: NCCL would wait for those that do not know.
  if (node_ && std::uncaught_exceptions() > 0)
    node_->fail(
        EngineError(ErrorCode::device, node_->name_of(node_->index()) + " ended with an error; its own log says which"));
  else if (node_)
    node_->end();
  stop();
}

void World::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void World::tell_nodes(const std::function<std::string()>& command) {
  if (node_ && node_->leads()) node_->tell(command());
}

void World::run(const StepInputs& inputs, StepOutputs& outputs, Trace* trace) {
  SIGMOE_CHECK(!trace || !node_, "traces are of one process");
  tell_nodes([&] { return encode_step(inputs); });
  on_every_rank([&](int rank) {
    if (rank == 0) return runners_[0]->run(inputs, outputs, trace);
    StepOutputs ignored;
    Trace forced;  // every rank takes the experts that are forced; what they see is looked at on the first alone
    if (trace) forced.forced_ids = trace->forced_ids;
    runners_[rank]->run(inputs, ignored, forced.forced_ids.empty() ? nullptr : &forced);
  });
}

void World::launch(const StepInputs& inputs, StepOutputs& outputs) {
  if (comms_.empty()) return runners_[0]->launch(inputs, outputs);
  run(inputs, outputs);
}

void World::on_every_rank(const std::function<void(int rank)>& work) {
  {
    const std::lock_guard lock(mutex_);
    if (failure_) throw_broken();
    work_ = &work;
    n_unfinished_ = static_cast<int>(threads_.size());
    ++generation_;
  }
  changed_.notify_all();
  std::exception_ptr own_failure;
  try {
    work(0);
  } catch (...) {
    own_failure = std::current_exception();
  }
  if (own_failure && !comms_.empty()) fail(0, own_failure);
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return n_unfinished_ == 0; });
  if (node_) node_->check();  // what a rank elsewhere failed with is the cause of what failed here
  if (failure_) throw_broken();
  if (own_failure) std::rethrow_exception(own_failure);
}

// Remembers the first failure of any rank, and ends the waits of the others, whose failures follow from it.
void World::fail(int rank, std::exception_ptr failure) {
  {
    const std::lock_guard lock(mutex_);
    if (!failure_) failure_ = failure;
  }
  if (node_) try {
      std::rethrow_exception(failure);
    } catch (const std::exception& error) {
      node_->fail(EngineError(ErrorCode::device, node_->name_of(node_->index()) + " failed: " + error.what()));
    }
  comms_[rank]->shut_down();
}

// Once a rank of several has failed the collectives are gone: every later step fails in the same way, whatever the first error
// was.
void World::throw_broken() {
  try {
    std::rethrow_exception(failure_);
  } catch (const EngineError& error) {
    throw EngineError(ErrorCode::device, error.what(), error.hint());
  } catch (const std::exception& error) {
    throw EngineError(ErrorCode::device, std::string("a rank failed: ") + error.what());
  }
}

void World::rank_loop(int rank) {
  name_this_thread("sigmoe-rank");
  uint64_t seen = 0;
  for (;;) {
    const std::function<void(int rank)>* work = nullptr;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stopping_ || generation_ != seen; });
      if (stopping_) return;
      seen = generation_;
      work = work_;
    }
    std::exception_ptr failure;
    try {
      (*work)(rank);
    } catch (...) {
      failure = std::current_exception();
    }
    if (failure) fail(rank, failure);
    {
      const std::lock_guard lock(mutex_);
      --n_unfinished_;
    }
    changed_.notify_all();
  }
}

}  // namespace sigmoe
