#include "backend/wire.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "backend/error.h"

namespace sigmoe::wire {
namespace {

constexpr uint32_t kMark = 0x314e4753;  // "SGN1" as it lies in memory; the number is the version of the form
constexpr size_t kHeader = 16, kAtOnce = size_t{1} << 20;

[[noreturn]] void fail(const std::string& what, const std::string& hint = {}) { throw EngineError(ErrorCode::io, what, hint); }

std::string reason() { return std::strerror(errno); }

struct FreeInfo {
  void operator()(addrinfo* info) const { freeaddrinfo(info); }
};
using Addresses = std::unique_ptr<addrinfo, FreeInfo>;

// Null where the name stands for nothing; `why` then says so.
Addresses resolve(const Address& address, bool passive, std::string& why) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = passive ? AI_PASSIVE : 0;
  addrinfo* found = nullptr;
  const int status = getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &found);
  if (status != 0) why = gai_strerror(status);
  return Addresses(status == 0 ? found : nullptr);
}

bool is_loopback(const sockaddr* address) {
  if (address->sa_family == AF_INET) return ntohl(reinterpret_cast<const sockaddr_in*>(address)->sin_addr.s_addr) >> 24 == 127;
  if (address->sa_family != AF_INET6) return false;
  return IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr);
}

bool wait_for(int fd, short events, Milliseconds patience) {
  const auto until = Clock::now() + patience;
  for (;;) {
    const auto left = std::chrono::duration_cast<Milliseconds>(until - Clock::now()).count();
    pollfd waited = {fd, events, 0};
    const int n = poll(&waited, 1, static_cast<int>(std::clamp<int64_t>(left, 0, 1 << 30)));
    if (n > 0) return true;
    if (n == 0) return false;
    if (errno != EINTR) fail("waiting for a connection between nodes: " + reason());
  }
}

void prepare(int fd) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

void receive_into(int fd, char* out, size_t n, Milliseconds patience, Clock::time_point latest) {
  while (n > 0) {
    if (Clock::now() > latest) fail("what should have come at once took too long");
    if (!wait_for(fd, POLLIN, patience)) fail("nothing was heard for " + std::to_string(patience.count()) + " ms");
    const ssize_t got = recv(fd, out, n, 0);
    if (got == 0) fail("the connection was closed");
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (got < 0) fail("the connection broke: " + reason());
    out += got;
    n -= static_cast<size_t>(got);
  }
}

void send_all(int fd, const char* data, size_t n, Milliseconds patience) {
  while (n > 0) {
    if (!wait_for(fd, POLLOUT, patience)) fail("nothing was taken for " + std::to_string(patience.count()) + " ms");
    const ssize_t sent = ::send(fd, data, n, MSG_NOSIGNAL);
    if (sent < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (sent < 0) fail("the connection broke: " + reason());
    data += sent;
    n -= static_cast<size_t>(sent);
  }
}

}  // namespace

void Socket::close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

bool is_loopback(const Address& address) {
  std::string why;
  const Addresses found = resolve(address, false, why);
  if (!found) return false;
  for (const addrinfo* at = found.get(); at; at = at->ai_next)
    if (!is_loopback(at->ai_addr)) return false;
  return true;
}

bool is_known(const Address& address) {
  std::string why;
  return resolve(address, false, why) != nullptr;
}

Socket listen_on(const Address& address) {
  const std::string asked = "the leader's address " + address.text() + " asked for: ";
  std::string why;
  const Addresses found = resolve(address, true, why);
  for (const addrinfo* at = found.get(); at; at = at->ai_next) {
    Socket socket(::socket(at->ai_family, at->ai_socktype | SOCK_CLOEXEC, at->ai_protocol));
    const int on = 1;
    if (socket) setsockopt(socket.fd(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (socket && bind(socket.fd(), at->ai_addr, at->ai_addrlen) == 0 && listen(socket.fd(), 64) == 0) {
      prepare(socket.fd());
      return socket;
    }
    why = reason();
  }
  fail(asked + why, "MASTER_ADDR must be an address of the machine of rank 0, and MASTER_PORT a free port there");
}

std::pair<Socket, std::string> accept_within(const Socket& listener, Milliseconds patience) {
  if (!wait_for(listener.fd(), POLLIN, patience)) return std::make_pair(Socket(), std::string());
  sockaddr_storage from = {};
  socklen_t size = sizeof from;
  Socket socket(accept4(listener.fd(), reinterpret_cast<sockaddr*>(&from), &size, SOCK_CLOEXEC));
  if (!socket) return std::make_pair(Socket(), std::string());  // it went away again
  prepare(socket.fd());
  char host[NI_MAXHOST] = "?";
  getnameinfo(reinterpret_cast<const sockaddr*>(&from), size, host, sizeof host, nullptr, 0, NI_NUMERICHOST);
  return {std::move(socket), host};
}

Socket connect_to(const Address& address, Milliseconds patience, std::string& why) {
  const Addresses found = resolve(address, false, why);
  for (const addrinfo* at = found.get(); at; at = at->ai_next) {
    Socket socket(::socket(at->ai_family, at->ai_socktype | SOCK_CLOEXEC, at->ai_protocol));
    if (!socket) continue;
    prepare(socket.fd());
    int error = connect(socket.fd(), at->ai_addr, at->ai_addrlen) == 0 ? 0 : errno;
    if (error == EINPROGRESS) {
      error = ETIMEDOUT;
      socklen_t size = sizeof error;
      if (wait_for(socket.fd(), POLLOUT, patience)) getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &error, &size);
    }
    if (error == 0) return socket;
    why = std::strerror(error);
  }
  return Socket();
}

void send(const Socket& socket, Kind kind, std::string_view body, Milliseconds patience) {
  char header[kHeader] = {};
  const uint64_t length = body.size();
  std::memcpy(header, &kMark, 4);
  header[4] = static_cast<char>(kind);
  std::memcpy(header + 8, &length, 8);
  if (body.size() >= kAtOnce) {
    send_all(socket.fd(), header, kHeader, patience);
    return send_all(socket.fd(), body.data(), body.size(), patience);
  }
  const std::string whole = std::string(header, kHeader).append(body);
  send_all(socket.fd(), whole.data(), whole.size(), patience);
}

Frame receive(const Socket& socket, size_t most_bytes, Milliseconds patience, Clock::time_point latest) {
  char header[kHeader];
  receive_into(socket.fd(), header, kHeader, patience, latest);
  uint32_t mark = 0;
  uint64_t length = 0;
  std::memcpy(&mark, header, 4);
  std::memcpy(&length, header + 8, 8);
  const auto kind = static_cast<uint8_t>(header[4]);
  const auto broken = [](const std::string& what) { throw EngineError(ErrorCode::unsupported, what); };
  if (mark != kMark) broken("what was heard is not what nodes of this version say to each other");
  if (kind < static_cast<uint8_t>(Kind::challenge) || kind > static_cast<uint8_t>(Kind::ended) || length > most_bytes)
    broken("a frame of kind " + std::to_string(kind) + " and " + std::to_string(length) + " bytes was heard, where at most " +
           std::to_string(most_bytes) + " may come");
  Frame frame{static_cast<Kind>(kind), {}};
  while (frame.body.size() < length) {
    const size_t at = frame.body.size(), n = std::min<size_t>(kAtOnce, static_cast<size_t>(length) - at);
    frame.body.resize(at + n);
    receive_into(socket.fd(), frame.body.data() + at, n, patience, latest);
  }
  return frame;
}

}  // namespace sigmoe::wire
