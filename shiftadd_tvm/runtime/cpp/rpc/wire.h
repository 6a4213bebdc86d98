// Bytes over TCP, as TVM's RPC sends them: little-endian int32, and strings behind their length.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace shiftadd::rpc {

// A connection that broke, or a peer that does not speak the protocol.
struct WireError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// An address as people write it: HOST:PORT.
struct Address {
  std::string host;
  int port = 0;
};

// Read "HOST:PORT"; false if it is none.
bool parse_address(const std::string& text, Address& address);

// An open socket; closed with the object.
class Socket {
 public:
  Socket() = default;
  explicit Socket(int descriptor) : descriptor_(descriptor) {}
  Socket(Socket&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  ~Socket();

  static Socket connect(const Address& address);  // WireError
  static Socket listen(const Address& address);   // port 0: any free one. WireError
  Socket accept() const;                          // WireError

  explicit operator bool() const { return descriptor_ >= 0; }
  int descriptor() const { return descriptor_; }
  int port() const;              // on which it listens
  void close();
  void set_timeout(int seconds);  // of a receive; 0: none
  bool readable(int milliseconds) const;

  void send_number(int32_t value);              // WireError, as all below
  void send_string(const std::string& text);
  int32_t receive_number();
  std::string receive_string(int32_t most);     // refuses a longer one

 private:
  void send(const void* data, size_t size);
  void receive(void* data, size_t size);

  int descriptor_ = -1;
};

}  // namespace shiftadd::rpc
