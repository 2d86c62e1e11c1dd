// Several processes, on one machine or on many, as one world of ranks. Each is a node with as many ranks as every other; the
// one of index 0 leads: it alone has scheduler, sampler and server, and tells the others what to compute.
//
// Every follower keeps one TCP connection to the leader. Before anything else passes over it both sides prove, by a HMAC over
// numbers the other has just made up, that they hold the same secret; without one, only loopback addresses are taken. What
// follows is neither encrypted nor signed, and token ids are among it: the network between nodes must be a private one.
//
// A node that ends, breaks the form or falls silent fails the world on every other node, with a message that names its ranks.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "backend/error.h"
#include "backend/node_options.h"
#include "backend/wire.h"

namespace sigmoe {

class Node {
 public:
  // Returns when all nodes are there; followers may come before the leader. `facts`: lines "name: value" that must be the same
  // on all nodes. `cancelled` ends the wait, and those of meet() until loaded() is called.
  Node(const NodeOptions& options, int ranks_each, const std::string& facts, const std::atomic<bool>* cancelled);
  ~Node();
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  int index() const { return options_.index; }
  int count() const { return options_.count; }
  bool leads() const { return options_.index == 0; }
  const NodeOptions& options() const { return options_; }
  void loaded() { cancelled_ = nullptr; }

  // Called by every node, in the same order and between the same commands, by one thread of each at a time: all get what the
  // leader's `combine` makes of what all bring, in order of nodes.
  using Combine = std::function<std::string(const std::vector<std::string>&)>;
  std::string meet(std::string own, const Combine& combine);

  void tell(std::string_view command);  // leader: to all followers
  void end();                           // leader: the followers end, too; nothing is told any more
  // Follower: the next command; nothing when the leader has ended. Throws aborted once `cancelled` is set.
  std::optional<std::string> next(const std::atomic<bool>* cancelled);

  // Ends the world on all nodes, unless it has ended: what waits here or there throws `why`, as does every later call.
  void fail(const EngineError& why);
  // Throws what the world failed with, if it has.
  void check() const;
  // Called once when the world fails, by whatever thread; at once if it has.
  void on_failure(std::function<void()> notify);
  std::string name_of(int node) const;  // "rank 1 (node 1 at 10.0.0.2)"

 private:
  struct Peer {
    int node = 0;
    wire::Socket socket;
    std::string where;
    std::mutex sending;
    std::deque<wire::Frame> heard;  // not yet asked for
    std::thread reader;
  };

  void lead(const std::string& facts);
  int drop_those_gone();
  std::string admit(wire::Socket& socket, const std::string& from, const std::string& facts);
  void follow(const std::string& facts);
  bool join_through(wire::Socket& socket, const std::string& facts, std::string& why);
  void start();
  void read_from(Peer& peer);
  void keep_pulse();
  void send(Peer& peer, wire::Kind kind, std::string_view body);
  wire::Frame wait_for(Peer& peer, wire::Kind kind);
  bool is_cancelled(const std::atomic<bool>* flag) const { return flag && flag->load(); }
  void check_secret() const;
  wire::Milliseconds patience() const { return wire::Milliseconds(options_.patience_ms); }

  NodeOptions options_;
  int ranks_each_;
  std::atomic<const std::atomic<bool>*> cancelled_;
  std::vector<std::unique_ptr<Peer>> peers_;  // the leader's followers in order; a follower's leader
  std::thread pulse_;

  mutable std::mutex mutex_;  // guards what follows, and Peer::heard
  std::condition_variable changed_;
  std::optional<EngineError> failure_;
  std::vector<std::function<void()>> listeners_;
  bool ended_ = false, closing_ = false;
};

}  // namespace sigmoe
