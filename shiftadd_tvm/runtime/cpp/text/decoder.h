// decoder.h: from tokens back to text.
#ifndef SHIFTADD_TEXT_DECODER_H_
#define SHIFTADD_TEXT_DECODER_H_

#include <string>
#include <variant>
#include <vector>

#include "../src/json.h"
#include "pattern.h"

namespace shiftadd::text {

class Decoder {
 public:
  // Of "decoder" of a tokenizer.json: ByteLevel, ByteFallback, Fuse, Metaspace, Replace, Strip and
  // Sequences of them; null joins tokens with spaces. A Failure for any other.
  explicit Decoder(json::Value value);

  std::string run(std::vector<std::string> tokens) const;

 private:
  struct ByteLevel {};
  struct ByteFallback {};
  struct Fuse {};
  struct Metaspace {
    char32_t replacement;
    bool drop_first;
  };
  struct Replace {
    Pattern pattern;
    std::u32string content;
  };
  struct Strip {
    char32_t content;
    size_t start, stop;
  };
  using Step = std::variant<ByteLevel, ByteFallback, Fuse, Metaspace, Replace, Strip>;
  using Tokens = std::vector<std::string>;

  void read(json::Value value);
  static Tokens apply(const ByteLevel& step, const Tokens& tokens);
  static Tokens apply(const ByteFallback& step, const Tokens& tokens);
  static Tokens apply(const Fuse& step, const Tokens& tokens);
  static Tokens apply(const Metaspace& step, const Tokens& tokens);
  static Tokens apply(const Replace& step, const Tokens& tokens);
  static Tokens apply(const Strip& step, const Tokens& tokens);

  bool spaced_ = false;
  std::vector<Step> steps_;
};

}  // namespace shiftadd::text

#endif  // SHIFTADD_TEXT_DECODER_H_
