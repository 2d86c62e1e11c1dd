// Frames over a TCP connection between nodes: a header of 16 bytes (mark, kind, length) and a body. Whatever bytes arrive, and
// whenever the other side falls silent, the outcome is an error; a length is believed only as far as bytes follow it.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace sigmoe::wire {

using Milliseconds = std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

enum class Kind : uint8_t {
  challenge = 1,  // of the handshake, in this order
  join,
  welcome,
  refused,
  pulse,    // still here
  part,     // of a meeting: what a follower brings
  whole,    // and what the leader made of all parts
  command,  // what the followers are to do next
  failed,   // why this node ends its part in the world
  ended,    // the leader is done
};

struct Frame {
  Kind kind = Kind::pulse;
  std::string body;
};

// Owns the descriptor.
class Socket {
 public:
  explicit Socket(int fd = -1) : fd_(fd) {}
  ~Socket() { close(); }
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    if (this != &other) {
      close();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  int fd() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  void close();

 private:
  int fd_;
};

// An address as given, and what it stands for.
struct Address {
  std::string host;
  int port = 0;
  std::string text() const { return host + ":" + std::to_string(port); }
};

bool is_loopback(const Address& address);  // every address that the host name stands for
bool is_known(const Address& address);     // the host name stands for some address
// Listens on that address alone. Throws io when it is none of this machine or the port is taken.
Socket listen_on(const Address& address);
// The next connection, and who it is from; empty when none has come in time.
std::pair<Socket, std::string> accept_within(const Socket& listener, Milliseconds patience);
// Empty when nobody listens there yet; `why` then says what was met.
Socket connect_to(const Address& address, Milliseconds patience, std::string& why);

// Both throw io when the other side has closed or was silent for `patience`, and unsupported when what it says is no frame.
void send(const Socket& socket, Kind kind, std::string_view body, Milliseconds patience);
Frame receive(const Socket& socket, size_t most_bytes, Milliseconds patience,
              Clock::time_point latest = Clock::time_point::max());

}  // namespace sigmoe::wire
