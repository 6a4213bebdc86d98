#include "wire.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace shiftadd::rpc {
namespace {

constexpr int kBacklog = 8;

[[noreturn]] void fail(const std::string& what) { throw WireError(what + ": " + std::strerror(errno)); }

// Call `use` for each address that a name has until it returns a descriptor.
template <typename Use>
int first_of(const Address& address, int flags, Use use) {
  addrinfo hints = {}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags;
  const std::string port = std::to_string(address.port);
  if (const int code = getaddrinfo(address.host.c_str(), port.c_str(), &hints, &found))
    throw WireError(address.host + ": " + gai_strerror(code));
  int descriptor = -1;
  for (const addrinfo* one = found; one && descriptor < 0; one = one->ai_next) {
    descriptor = socket(one->ai_family, one->ai_socktype | SOCK_CLOEXEC, one->ai_protocol);
    if (descriptor >= 0 && !use(descriptor, *one)) {
      const int problem = errno;
      ::close(descriptor);
      errno = problem;
      descriptor = -1;
    }
  }
  freeaddrinfo(found);
  if (descriptor < 0) fail(address.host + ":" + port);
  return descriptor;
}

}  // namespace

bool parse_address(const std::string& text, Address& address) {
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos || colon == 0 || colon + 1 == text.size()) return false;
  char* end = nullptr;
  const long port = std::strtol(text.c_str() + colon + 1, &end, 10);
  if (*end || port < 0 || port > 65535) return false;
  address = {text.substr(0, colon), static_cast<int>(port)};
  return true;
}

Socket::~Socket() { close(); }

void Socket::close() {
  if (descriptor_ >= 0) ::close(std::exchange(descriptor_, -1));
}

Socket Socket::connect(const Address& address) {
  return Socket(first_of(address, 0, [](int descriptor, const addrinfo& to) {
    return ::connect(descriptor, to.ai_addr, to.ai_addrlen) == 0;
  }));
}

Socket Socket::listen(const Address& address) {
  return Socket(first_of(address, AI_PASSIVE, [](int descriptor, const addrinfo& at) {
    const int yes = 1;
    setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    return bind(descriptor, at.ai_addr, at.ai_addrlen) == 0 && ::listen(descriptor, kBacklog) == 0;
  }));
}

Socket Socket::accept() const {
  const int descriptor = ::accept(descriptor_, nullptr, nullptr);
  if (descriptor < 0) fail("accept");
  const int yes = 1;
  setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  return Socket(descriptor);
}

int Socket::port() const {
  sockaddr_storage at = {};
  socklen_t size = sizeof at;
  if (getsockname(descriptor_, reinterpret_cast<sockaddr*>(&at), &size)) fail("getsockname");
  const bool six = at.ss_family == AF_INET6;
  return ntohs(six ? reinterpret_cast<sockaddr_in6*>(&at)->sin6_port
                   : reinterpret_cast<sockaddr_in*>(&at)->sin_port);
}

void Socket::set_timeout(int seconds) {
  const timeval limit = {seconds, 0};
  setsockopt(descriptor_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
}

bool Socket::readable(int milliseconds) const {
  pollfd watched = {descriptor_, POLLIN, 0};
  return poll(&watched, 1, milliseconds) > 0;
}

void Socket::send(const void* data, size_t size) {
  for (const char* next = static_cast<const char*>(data); size;) {
    const ssize_t sent = ::send(descriptor_, next, size, MSG_NOSIGNAL);
    if (sent <= 0) fail("send");
    next += sent;
    size -= static_cast<size_t>(sent);
  }
}

void Socket::receive(void* data, size_t size) {
  for (char* next = static_cast<char*>(data); size;) {
    const ssize_t got = recv(descriptor_, next, size, 0);
    if (got == 0) throw WireError("the peer has hung up");
    if (got < 0) fail("receive");
    next += got;
    size -= static_cast<size_t>(got);
  }
}

// TVM sends numbers as the machine has them, and all of its machines are little-endian, as ours are.
void Socket::send_number(int32_t value) { send(&value, sizeof value); }

int32_t Socket::receive_number() {
  int32_t value = 0;
  receive(&value, sizeof value);
  return value;
}

void Socket::send_string(const std::string& text) {
  send_number(static_cast<int32_t>(text.size()));
  send(text.data(), text.size());
}

std::string Socket::receive_string(int32_t most) {
  const int32_t size = receive_number();
  if (size < 0 || size > most) throw WireError("a text of " + std::to_string(size) + " bytes was announced");
  std::string text(static_cast<size_t>(size), '\0');
  receive(&text[0], text.size());
  return text;
}

}  // namespace shiftadd::rpc
