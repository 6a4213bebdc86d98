// stream.h: the text of tokens that come one after the other.
#ifndef SHIFTADD_TEXT_STREAM_H_
#define SHIFTADD_TEXT_STREAM_H_

#include <string>
#include <vector>

#include "tokenizer.h"

namespace shiftadd::text {

// Shows what shiftadd_tvm/runtime/text.py's TextStream shows, piece by piece. Special tokens are left out.
class Stream {
 public:
  Stream(const Tokenizer& tokenizer, const Id* prompt, size_t count);

  std::string push(Id token);
  std::string finish();

 private:
  std::string step(Id token);

  const Tokenizer& tokenizer_;
  std::vector<Id> before_, all_;  // the end of the prompt, and the tokens since
  size_t shown_ = 0;              // code points of all_
  std::vector<Id> window_;        // the tokens that are decoded together
  size_t settled_ = 0;            // tokens at the front of window_ that prefix_ is the text of
  std::string prefix_;
};

}  // namespace shiftadd::text

#endif  // SHIFTADD_TEXT_STREAM_H_
