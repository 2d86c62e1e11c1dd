#include "backend/node.h"

#include <sys/socket.h>

#include "backend/thread_name.h"

namespace sigmoe {
namespace {

constexpr uint64_t kMostBytes = uint64_t{8} << 30;  // of a frame
constexpr size_t kMostHeard = 64;                   // frames that nobody has asked for
constexpr wire::Milliseconds kGlance{100};          // how late a cancelled wait may end

}  // namespace

Node::Node(const NodeOptions& options, int ranks_each, const std::string& facts, const std::atomic<bool>* cancelled)
    : options_(options), ranks_each_(ranks_each), cancelled_(cancelled) {
  check_secret();
  if (leads())
    lead(facts);
  else
    follow(facts);
  start();
}

void Node::end() {
  {
    const std::lock_guard lock(mutex_);
    if (failure_ || ended_ || !leads()) return;
    ended_ = true;
  }
  for (const auto& peer : peers_) try {
      const std::lock_guard lock(peer->sending);
      wire::send(peer->socket, wire::Kind::ended, {}, patience());
    } catch (const EngineError&) {  // it has gone, too
    }
}

Node::~Node() {
  end();
  bool failed = false;
  {
    const std::lock_guard lock(mutex_);
    failed = failure_.has_value() || ended_;
  }
  if (!failed && !leads()) fail(EngineError(ErrorCode::device, name_of(index()) + " was told to end"));
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  if (pulse_.joinable()) pulse_.join();
  for (const auto& peer : peers_) {
    shutdown(peer->socket.fd(), SHUT_RDWR);
    if (peer->reader.joinable()) peer->reader.join();
  }
}

std::string Node::name_of(int node) const {
  const int first = node * ranks_each_, last = first + ranks_each_ - 1;
  std::string where;
  for (const auto& peer : peers_)
    if (peer && peer->node == node) where = " at " + peer->where;
  return (first == last ? "rank " + std::to_string(first) : "ranks " + std::to_string(first) + " to " + std::to_string(last)) +
         " (node " + std::to_string(node) + where + ")";
}

// ---- threads ---------------------------------------------------------------------------------------------------------

void Node::start() {
  for (const auto& peer : peers_) peer->reader = std::thread([this, &peer = *peer] { read_from(peer); });
  pulse_ = std::thread([this] { keep_pulse(); });
}

void Node::read_from(Peer& peer) {
  name_this_thread("sigmoe-node");
  try {
    for (;;) {
      wire::Frame frame = wire::receive(peer.socket, kMostBytes, patience());
      if (frame.kind == wire::Kind::pulse) continue;
      if (frame.kind == wire::Kind::failed) return fail(EngineError(ErrorCode::device, frame.body));
      const std::lock_guard lock(mutex_);
      if (frame.kind == wire::Kind::ended && !leads()) {
        ended_ = true;
        return changed_.notify_all();
      }
      const bool expected =
          leads() ? frame.kind == wire::Kind::part : frame.kind == wire::Kind::whole || frame.kind == wire::Kind::command;
      if (!expected || peer.heard.size() >= kMostHeard)
        throw EngineError(ErrorCode::unsupported, "it said what was not its turn to say");
      peer.heard.push_back(std::move(frame));
      changed_.notify_all();
    }
  } catch (const std::exception& error) {
    {
      const std::lock_guard lock(mutex_);
      if (closing_) return;
    }
    fail(EngineError(ErrorCode::device, name_of(peer.node) + " is lost: " + error.what(),
                     "start all nodes again; their own logs say more"));
  }
}

void Node::keep_pulse() {
  name_this_thread("sigmoe-pulse");
  const wire::Milliseconds each = patience() / 4;
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, each, [this] { return closing_ || failure_ || ended_; })) {
    lock.unlock();
    for (const auto& peer : peers_) try {
        const std::unique_lock free(peer->sending, std::try_to_lock);  // whoever has it shows life, too
        if (free) wire::send(peer->socket, wire::Kind::pulse, {}, each);
      } catch (const EngineError& error) {
        fail(EngineError(ErrorCode::device, name_of(peer->node) + " is lost: " + error.what()));
      }
    lock.lock();
  }
}

void Node::fail(const EngineError& why) {
  std::vector<std::function<void()>> listeners;
  {
    const std::lock_guard lock(mutex_);
    if (failure_ || ended_ || closing_) return;
    failure_.emplace(ErrorCode::device, why.what(), why.hint());
    listeners.swap(listeners_);
  }
  changed_.notify_all();
  for (const auto& notify : listeners) notify();
  for (const auto& peer : peers_) {
    try {
      const std::unique_lock free(peer->sending, std::try_to_lock);
      if (free) wire::send(peer->socket, wire::Kind::failed, why.what(), kGlance);
    } catch (const EngineError&) {  // the connection that has failed
    }
    shutdown(peer->socket.fd(), SHUT_WR);  // who is in the middle of sending stops; the other side sees the end
  }
}

void Node::check() const {
  const std::lock_guard lock(mutex_);
  if (failure_) throw *failure_;
}

void Node::on_failure(std::function<void()> notify) {
  {
    const std::lock_guard lock(mutex_);
    if (!failure_) return listeners_.push_back(std::move(notify));
  }
  notify();
}

// ---- what nodes say to each other ------------------------------------------------------------------------------------

void Node::send(Peer& peer, wire::Kind kind, std::string_view body) {
  try {
    const std::lock_guard lock(peer.sending);
    wire::send(peer.socket, kind, body, patience());
  } catch (const EngineError& error) {
    fail(EngineError(ErrorCode::device, name_of(peer.node) + " is lost: " + error.what()));
    check();
    throw;
  }
}

wire::Frame Node::wait_for(Peer& peer, wire::Kind kind) {
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, kGlance, [&] { return failure_ || ended_ || !peer.heard.empty(); }))
    if (is_cancelled(cancelled_)) throw EngineError(ErrorCode::aborted, "loading was aborted");
  if (failure_) throw *failure_;
  if (peer.heard.empty()) throw EngineError(ErrorCode::device, "the leader has ended in the middle of a step");
  wire::Frame frame = std::move(peer.heard.front());
  peer.heard.pop_front();
  lock.unlock();
  if (frame.kind == kind) return frame;
  fail(EngineError(ErrorCode::device, name_of(peer.node) + " is at another point of its work than " + name_of(index()),
                   "start all nodes with the same version, model and flags"));
  check();
  return frame;
}

std::string Node::meet(std::string own, const Combine& combine) {
  check();
  if (!leads()) {
    send(*peers_[0], wire::Kind::part, own);
    return wait_for(*peers_[0], wire::Kind::whole).body;
  }
  std::vector<std::string> parts = {std::move(own)};
  for (const auto& peer : peers_) parts.push_back(wait_for(*peer, wire::Kind::part).body);
  try {
    std::string whole = combine(parts);
    for (const auto& peer : peers_) send(*peer, wire::Kind::whole, whole);
    return whole;
  } catch (const EngineError& error) {
    fail(error);
    throw;
  }
}

void Node::tell(std::string_view command) {
  check();
  for (const auto& peer : peers_) send(*peer, wire::Kind::command, command);
}

std::optional<std::string> Node::next(const std::atomic<bool>* cancelled) {
  {
    std::unique_lock lock(mutex_);
    while (!changed_.wait_for(lock, kGlance, [&] { return failure_ || ended_ || !peers_[0]->heard.empty(); }))
      if (is_cancelled(cancelled)) throw EngineError(ErrorCode::aborted, "this node was told to end");
    if (!failure_ && peers_[0]->heard.empty()) return std::nullopt;
  }
  return wait_for(*peers_[0], wire::Kind::command).body;
}

}  // namespace sigmoe
