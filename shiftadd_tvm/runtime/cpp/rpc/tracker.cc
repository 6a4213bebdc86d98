#include "tracker.h"

#include <sys/random.h>

#include <cerrno>
#include <cstring>

namespace shiftadd::rpc {
namespace {

constexpr int32_t kMagic = 0x2F271;
constexpr int32_t kLongest = 1 << 20;  // bytes of a reply
constexpr int kPatience = 10;          // seconds until a silent tracker is given up
enum Code { kPut = 3, kUpdate = 5, kPending = 7 };

std::string quoted(const std::string& text) { return '"' + text + '"'; }  // keys need no escapes

std::string random_digits() {
  uint32_t drawn[4];
  if (getrandom(drawn, sizeof drawn, 0) != sizeof drawn)
    throw WireError(std::string("no random numbers: ") + std::strerror(errno));
  std::string digits;
  for (const uint32_t number : drawn) digits += std::to_string(number);
  return digits;
}

}  // namespace

Tracker::Tracker(const Address& address, const std::string& key, const std::string& host, int port)
    : socket_(Socket::connect(address)), key_(key), host_(host.empty() ? "null" : quoted(host)), port_(port) {
  socket_.set_timeout(kPatience);
  socket_.send_number(kMagic);
  if (socket_.receive_number() != kMagic) throw WireError("it is no tracker of TVM's");
  ask("[" + std::to_string(kUpdate) + ", {\"key\": " + quoted("server:" + key_) + ", \"addr\": [" + host_ +
      ", " + std::to_string(port_) + "]}]");
}

std::string Tracker::announce() {
  const std::string match = key_ + ":" + random_digits();
  ask("[" + std::to_string(kPut) + ", " + quoted(key_) + ", [" + std::to_string(port_) + ", " + quoted(match) +
      "], " + host_ + "]");
  return match;
}

bool Tracker::is_pending(const std::string& match) {
  return ask("[" + std::to_string(kPending) + "]").find(quoted(match)) != std::string::npos;
}

std::string Tracker::ask(const std::string& request) {
  socket_.send_string(request);
  return socket_.receive_string(kLongest);
}

}  // namespace shiftadd::rpc
