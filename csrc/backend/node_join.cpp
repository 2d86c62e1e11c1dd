// How nodes find each other: the leader listens on its address until all are there, each side proves that it has the secret,
// and what must be the same on all nodes is compared. Then the leader listens no more.
#include <sys/random.h>

#include <cstring>
#include <sstream>

#include "backend/node.h"
#include "backend/sha256.h"

namespace sigmoe {
namespace {

using wire::Clock;
using wire::Kind;
using wire::Milliseconds;

constexpr size_t kNonceBytes = 32, kProofBytes = 32, kHandshakeBytes = 64 << 10;
constexpr Milliseconds kHandshake{3000}, kAgain{200}, kGlance{100};

std::string nonce() {
  std::string bytes(kNonceBytes, '\0');
  for (size_t at = 0; at < bytes.size();) {
    const ssize_t n = getrandom(bytes.data() + at, bytes.size() - at, 0);
    if (n > 0) at += static_cast<size_t>(n);
  }
  return bytes;
}

std::string proof(const std::string& secret, const char* whose, std::string_view a, std::string_view b) {
  std::string said = whose;
  const Digest digest = hmac_sha256(secret, said.append(a).append(b));
  return {reinterpret_cast<const char*>(digest.data()), digest.size()};
}

// "model: 12ab" of two texts of such lines: the first that differs.
std::string difference(const std::string& here, const std::string& there) {
  std::istringstream a(here), b(there);
  for (std::string mine, other; std::getline(a, mine);) {
    if (!std::getline(b, other)) return "it does not say its " + mine.substr(0, mine.find(':'));
    if (mine != other) return "'" + other + "' there, '" + mine + "' on the leader";
  }
  return "it says more than the leader";
}

wire::Frame expect(const wire::Socket& socket, Kind kind) {
  wire::Frame frame = wire::receive(socket, kHandshakeBytes, kHandshake, Clock::now() + kHandshake);
  if (frame.kind == Kind::refused || frame.kind == Kind::failed)
    throw EngineError(ErrorCode::invalid_argument, "the leader refused this node: " + frame.body);
  if (frame.kind != kind) throw EngineError(ErrorCode::unsupported, "it does not know how nodes begin");
  return frame;
}

}  // namespace

void Node::check_secret() const {
  if (!options_.secret.empty() || options_.allow_no_secret) return;
  const wire::Address address{options_.address, options_.port};
  if (wire::is_loopback(address)) return;
  throw EngineError(ErrorCode::invalid_argument,
                    "several nodes asked for, at " + address.text() + ", which other machines may reach, and no secret is set",
                    "set SIGMOE_WORLD_SECRET to the same text on all nodes, or pass --allow-no-world-secret where every "
                    "machine of that network is trusted");
}

void Node::lead(const std::string& facts) {
  const wire::Address address{options_.address, options_.port};
  const auto until = Clock::now() + Milliseconds(options_.join_ms);
  while (!wire::is_known(address) && Clock::now() < until && !is_cancelled(cancelled_))
    std::this_thread::sleep_for(kAgain);  // where machines come and go, a name may come after its machine
  const wire::Socket listener = wire::listen_on(address);
  peers_.resize(options_.count - 1);
  int n_joined = 0, n_refused = 0;
  std::string last_refusal;
  auto pulse_at = Clock::now();
  while (n_joined < options_.count - 1) {
    if (Clock::now() >= pulse_at) {
      n_joined -= drop_those_gone();
      pulse_at = Clock::now() + patience() / 4;
    }
    if (is_cancelled(cancelled_)) throw EngineError(ErrorCode::aborted, "loading was aborted");
    if (Clock::now() > until)
      throw EngineError(
          ErrorCode::io,
          std::to_string(n_joined + 1) + " of " + std::to_string(options_.count) + " nodes were at " + address.text() +
              " within " + std::to_string(options_.join_ms / 1000) + " s" +
              (n_refused ? "; " + std::to_string(n_refused) + " connections were refused, the last because " + last_refusal
                         : std::string()),
          "start every node with the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE, and a RANK of its own");
    auto [socket, from] = wire::accept_within(listener, kGlance);
    if (!socket) continue;
    try {
      const std::string refusal = admit(socket, from, facts);
      if (refusal.empty())
        ++n_joined;
      else
        ++n_refused, last_refusal = from + ": " + refusal;
    } catch (const EngineError& error) {
      if (error.code() != ErrorCode::io && error.code() != ErrorCode::unsupported) throw;
      ++n_refused, last_refusal = from + ": " + error.what();
    }
  }
}

// Shows life to those that wait for the others; how many of them have gone, whose places are free again.
int Node::drop_those_gone() {
  int n_gone = 0;
  for (auto& peer : peers_) try {
      if (peer) wire::send(peer->socket, Kind::pulse, {}, kHandshake);
    } catch (const EngineError&) {
      peer.reset();
      ++n_gone;
    }
  return n_gone;
}

// Empty when the node is in. Throws invalid_argument when one that has the secret does not fit; all nodes then end.
std::string Node::admit(wire::Socket& socket, const std::string& from, const std::string& facts) {
  const std::string challenge = nonce();
  wire::send(socket, Kind::challenge, challenge, kHandshake);
  const std::string body = expect(socket, Kind::join).body;
  constexpr size_t kFixed = 4 + kNonceBytes;
  const auto refuse = [&](const std::string& why) {
    wire::send(socket, Kind::refused, why, kHandshake);
    return why;
  };
  if (body.size() < kFixed + kProofBytes) return refuse("its first words are too short");
  const std::string_view said = std::string_view(body).substr(0, body.size() - kProofBytes);
  if (!same_digest(proof(options_.secret, "sigmoe join", challenge, said), std::string_view(body).substr(said.size())))
    return refuse("its secret is another");
  uint32_t node = 0;
  std::memcpy(&node, said.data(), 4);
  const std::string theirs(said.substr(kFixed));
  std::string misfit;
  if (theirs != facts)
    misfit = difference(facts, theirs);
  else if (node == 0 || node >= static_cast<uint32_t>(options_.count))
    misfit = "its rank is outside the world of " + std::to_string(options_.count) + " nodes";
  else if (peers_[node - 1])
    misfit = "there is a node of that rank already, at " + peers_[node - 1]->where;
  if (!misfit.empty()) {
    const std::string why = "node " + std::to_string(node) + " at " + from + " does not fit: " + misfit;
    refuse(why);
    for (const auto& peer : peers_)
      if (peer) wire::send(peer->socket, Kind::failed, why, kHandshake);
    throw EngineError(ErrorCode::invalid_argument, why, "start all nodes with the same version, model and flags");
  }
  wire::send(socket, Kind::welcome, proof(options_.secret, "sigmoe welcome", said.substr(4, kNonceBytes), challenge),
             kHandshake);
  peers_[node - 1] = std::make_unique<Peer>();
  peers_[node - 1]->node = static_cast<int>(node);
  peers_[node - 1]->socket = std::move(socket);
  peers_[node - 1]->where = from;
  return {};
}

void Node::follow(const std::string& facts) {
  const wire::Address address{options_.address, options_.port};
  const auto until = Clock::now() + Milliseconds(options_.join_ms);
  for (std::string why;; std::this_thread::sleep_for(kAgain)) {
    if (is_cancelled(cancelled_)) throw EngineError(ErrorCode::aborted, "loading was aborted");
    if (Clock::now() > until)
      throw EngineError(
          ErrorCode::io,
          "no leader was at " + address.text() + " within " + std::to_string(options_.join_ms / 1000) + " s: " + why,
          "start the node of rank 0, and see that this machine reaches its MASTER_ADDR and MASTER_PORT");
    wire::Socket socket = wire::connect_to(address, kHandshake, why);
    if (!socket || !join_through(socket, facts, why)) continue;
    peers_.push_back(std::make_unique<Peer>());
    peers_[0]->socket = std::move(socket);
    peers_[0]->where = address.text();
    return;
  }
}

// False when the other side went away, as a leader does that starts again. Throws when it is no leader of this world.
bool Node::join_through(wire::Socket& socket, const std::string& facts, std::string& why) {
  const std::string own = nonce();
  const auto node = static_cast<uint32_t>(options_.index);
  const std::string asked =
      "the leader at " + options_.address + ":" + std::to_string(options_.port) + " asked to take this node in: ";
  try {
    const std::string challenge = expect(socket, Kind::challenge).body;
    const std::string said = std::string(reinterpret_cast<const char*>(&node), 4) + own + facts;
    wire::send(socket, Kind::join, said + proof(options_.secret, "sigmoe join", challenge, said), kHandshake);
    const std::string welcome = expect(socket, Kind::welcome).body;
    if (same_digest(proof(options_.secret, "sigmoe welcome", own, challenge), welcome)) return true;
    throw EngineError(ErrorCode::invalid_argument, "it does not have the secret");
  } catch (const EngineError& error) {
    if (error.code() == ErrorCode::io) {
      why = error.what();
      return false;
    }
    throw EngineError(error.code(), asked + error.what(),
                      "see that MASTER_ADDR and MASTER_PORT are those of rank 0, that no other program listens there, and that "
                      "SIGMOE_WORLD_SECRET, version, model and flags are the same on all nodes");
  }
}

}  // namespace sigmoe
