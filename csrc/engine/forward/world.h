// All ranks of a model in this process, each on a thread of its own, and what becomes of them when one fails.
#pragma once

#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "backend/node.h"
#include "engine/forward/runner.h"

namespace sigmoe {

// All ranks of a model in one process. Rank 0 runs on the caller's thread, the others on threads of their own. Of a model on
// several nodes (backend/node.h): the ranks of this one, counted from 0 here; what the leader's run, those of the others run,
// too.
class World {
 public:
  // Makes rank r's runner, r counted over all nodes; called on the constructing thread, in rank order.
  using MakeRank = std::function<std::unique_ptr<RankRunner>(int rank, Comm* comm)>;
  World(int n_ranks, const MakeRank& make_rank, std::shared_ptr<Node> node = nullptr);
  ~World();

  void run(const StepInputs& inputs, StepOutputs& outputs, Trace* trace = nullptr);
  // RankRunner's; of several ranks no step is ever only launched.
  void launch(const StepInputs& inputs, StepOutputs& outputs);
  void finish(StepOutputs& outputs) { runners_[0]->finish(outputs); }
  // work(rank), on the thread of each rank at the same time; the first error of any is thrown when all have ended.
  void on_every_rank(const std::function<void(int rank)>& work);

  RankRunner& rank(int index) { return *runners_[index]; }
  int size() const { return static_cast<int>(runners_.size()); }
  Node* node() const { return node_.get(); }  // null: one process
  // Of the leader of several nodes: has the others do what on_every_rank() does next. Elsewhere nothing.
  void tell_nodes(const std::function<std::string()>& command);

 private:
  void rank_loop(int rank);
  void fail(int rank, std::exception_ptr failure);
  [[noreturn]] void throw_broken();
  void stop();

  std::shared_ptr<Node> node_;
  std::vector<std::unique_ptr<Comm>> comms_;  // empty for one rank
  std::vector<std::unique_ptr<RankRunner>> runners_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable changed_;
  const std::function<void(int rank)>* work_ = nullptr;  // being done; the generation says whether a rank has seen it
  uint64_t generation_ = 0;
  int n_unfinished_ = 0;
  bool stopping_ = false;
  std::exception_ptr failure_;
};

}  // namespace sigmoe
