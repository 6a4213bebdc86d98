// tokenizer.h: a tokenizer.json, whole: text to ids and back.
#ifndef SHIFTADD_TEXT_TOKENIZER_H_
#define SHIFTADD_TEXT_TOKENIZER_H_

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "added_tokens.h"
#include "bpe.h"
#include "decoder.h"
#include "normalizer.h"
#include "pretokenizer.h"
#include "template.h"

namespace shiftadd::text {

class Tokenizer {
 public:
  // A Failure or a json::Error where the document is no tokenizer that is known here.
  explicit Tokenizer(const json::Document& document);

  enum class Around { kNothing, kBos, kTemplate };
  // The ids of `text`, which must be UTF-8 (a Failure otherwise).
  std::vector<Id> encode(std::string_view text, Around around) const;
  // The text of `ids`; ids of no token are left out, as are special tokens where `skip_special`.
  std::string decode(const std::vector<Id>& ids, bool skip_special) const;

  // The token that is written so, or the text of a token; nothing where there is none.
  std::optional<Id> id(std::string_view token) const;
  std::optional<std::string> token(Id id) const;
  size_t count() const;

  // BOS as tokenizer_config.json wants it, or else as the tokenizer itself adds it.
  void choose_bos(std::optional<bool> wanted, std::string_view name);
  std::optional<Id> bos() const { return bos_; }

 private:
  void encode_between(std::u32string text, bool at_start, std::vector<Id>* ids) const;

  Bpe model_;
  Normalizer normalizer_;
  AddedTokens added_;
  PreTokenizer pretokenizer_;
  Template template_;
  Decoder decoder_;
  std::optional<Id> bos_;
};

}  // namespace shiftadd::text

#endif  // SHIFTADD_TEXT_TOKENIZER_H_
