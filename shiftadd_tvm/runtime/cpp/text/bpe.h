// bpe.h: byte-pair encoding of one word: a vocabulary and ranked merges.
#ifndef SHIFTADD_TEXT_BPE_H_
#define SHIFTADD_TEXT_BPE_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "flat_map.h"
#include "../src/json.h"
#include "vocabulary.h"

namespace shiftadd::text {

class Bpe {
 public:
  // Of the "model" of a tokenizer.json; a Failure or a json::Error where it is no BPE that is known here.
  explicit Bpe(json::Value model);

  // What a call of encode() needs; kept by the caller from one word to the next.
  struct Scratch {
    struct Symbol {
      Id id;
      uint32_t previous, next;  // kEnd: none
      bool gone;
    };
    std::vector<Symbol> symbols;
    std::vector<uint64_t> queue;  // rank << 32 | symbol, a heap whose top is the least
    std::string word;
  };

  // Append the ids of `word`, in O(n log n).
  void encode(std::u32string_view word, Scratch* scratch, std::vector<Id>* ids) const;

  const Vocabulary& vocabulary() const { return vocabulary_; }

 private:
  // What reading merges needs from one to the next.
  struct Reading {
    uint32_t rank = 0;
    Id made = -1;      // what the last merge makes: the next one often makes the next token
    std::string both;  // the two parts as one
  };

  void read_vocabulary(json::Value vocab);
  void read_merges(json::Value merges);
  void read_bytes();
  void add_merge(std::string_view left, std::string_view right, Reading* reading);
  void split(std::u32string_view word, Scratch* scratch) const;
  bool push_bytes(char32_t code, Scratch* scratch) const;
  void push(Id id, Scratch* scratch) const;
  void merge(Scratch* scratch) const;
  void enqueue(uint32_t symbol, Scratch* scratch) const;

  Vocabulary vocabulary_;
  FlatMap codes_;   // code point -> id of the token that is this one
  FlatMap merges_;  // pair of ids -> rank << 32 | id
  std::array<Id, 256> bytes_{};  // the tokens <0x00> ... <0xFF>; -1: there is none
  std::optional<Id> unknown_;
  bool fuse_unknown_ = false;
  bool byte_fallback_ = false;
  bool ignore_merges_ = false;
};

}  // namespace shiftadd::text

#endif  // SHIFTADD_TEXT_BPE_H_
