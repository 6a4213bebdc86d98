// One session: what a client may do with this machine, beside what TVM's runtime offers.
#pragma once

#include <string>

namespace shiftadd::rpc {

// Register, for TVM's RPC and for our own verbs:
//   tvm.rpc.server.workpath, tvm.rpc.server.load_module   as TVM's server in Python does
//   shiftadd.rpc.board()                                  what this machine is, as JSON
//   shiftadd.rpc.logits(ids, logits)                      run the artifact that was uploaded
// Exits with a sentence where TVM's runtime refuses.
void register_functions();

// Serve a client on an open connection until it goes; files lie in `folder`. Returns the exit status.
int serve(int descriptor, const std::string& folder);

}  // namespace shiftadd::rpc
