// The tracker's side of TVM's RPC: this server tells it that it is free, and by which key it is had.
#pragma once

#include <string>

#include "wire.h"

namespace shiftadd::rpc {

// A connection to `python -m tvm.exec.rpc_tracker`.
class Tracker {
 public:
  // Connect and introduce a server that listens on `port`. WireError.
  Tracker(const Address& address, const std::string& key, const std::string& host, int port);

  // Announce the server as free, under a key that nobody can guess; return it. WireError.
  std::string announce();

  // Tell whether the last key still waits for a client. WireError.
  bool is_pending(const std::string& match);

 private:
  std::string ask(const std::string& request);

  Socket socket_;
  std::string key_;
  std::string host_;  // as JSON
  int port_;
};

}  // namespace shiftadd::rpc
