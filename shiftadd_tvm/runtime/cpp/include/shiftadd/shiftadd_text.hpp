// shiftadd_text.hpp: shiftadd_text.h for C++17, header only. Handles are freed by themselves, failures are
// thrown as shiftadd::Error.
//
//     shiftadd::Tokenizer tokenizer("app");
//     shiftadd::TextStream stream(tokenizer, prompt);
//     session.generate(prompt, {}, [&](int32_t token) { std::cout << stream.push(token); return true; });
#ifndef SHIFTADD_SHIFTADD_TEXT_HPP_
#define SHIFTADD_SHIFTADD_TEXT_HPP_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "shiftadd/shiftadd.hpp"
#include "shiftadd/shiftadd_text.h"

namespace shiftadd {

struct Message {
  std::string role, content;
};

// The tokenizer of an artifact. Copies are the same tokenizer.
class Tokenizer {
 public:
  explicit Tokenizer(const std::string& path) {
    shiftadd_tokenizer* handle = nullptr;
    check(shiftadd_tokenizer_load(path.c_str(), &handle));
    handle_.reset(handle, shiftadd_tokenizer_free);
  }

  explicit Tokenizer(const shiftadd_tokenizer_files& files) {
    shiftadd_tokenizer* handle = nullptr;
    check(shiftadd_tokenizer_create(&files, &handle));
    handle_.reset(handle, shiftadd_tokenizer_free);
  }

  size_t count() const noexcept { return shiftadd_tokenizer_count(get()); }
  std::optional<int32_t> bos() const { return some(shiftadd_tokenizer_bos(get())); }
  std::optional<int32_t> id(std::string_view token) const {
    return some(shiftadd_tokenizer_id(get(), token.data(), token.size()));
  }

  std::string token(int32_t id) const {
    return text([&](char* buffer, size_t capacity, size_t* size) {
      return shiftadd_tokenizer_token(get(), id, buffer, capacity, size);
    });
  }

  Tokens encode(std::string_view text, shiftadd_around around = SHIFTADD_AROUND_BOS) const {
    Tokens tokens(text.size() + 8);  // as a rule there are fewer tokens than bytes
    size_t count = 0;
    for (;;) {
      check(shiftadd_tokenizer_encode(get(), text.data(), text.size(), around, tokens.data(),
                                           tokens.size(), &count));
      const bool all = count <= tokens.size();
      tokens.resize(count);
      if (all) return tokens;
    }
  }

  std::string decode(const Tokens& tokens, bool keep_special = false) const {
    return text([&](char* buffer, size_t capacity, size_t* size) {
      return shiftadd_tokenizer_decode(get(), tokens.data(), tokens.size(), keep_special, buffer, capacity,
                                       size);
    });
  }

  bool has_chat() const noexcept { return shiftadd_tokenizer_has_chat(get()) != 0; }
  std::string render(const std::vector<Message>& messages) const {
    std::vector<shiftadd_message> plain;
    for (const Message& message : messages) {
      plain.push_back({message.role.c_str(), message.content.c_str()});
    }
    return text([&](char* buffer, size_t capacity, size_t* size) {
      return shiftadd_tokenizer_render(get(), plain.data(), plain.size(), buffer, capacity, size);
    });
  }

  shiftadd_tokenizer* get() const noexcept { return handle_.get(); }

 private:
  static std::optional<int32_t> some(int32_t id) {
    return id < 0 ? std::nullopt : std::optional<int32_t>(id);
  }

  template <typename Fill>
  static std::string text(const Fill& fill) {
    size_t size = 0;
    check(fill(nullptr, size_t{0}, &size));
    std::string result(size + 1, '\0');
    check(fill(result.data(), result.size(), &size));
    result.resize(size);
    return result;
  }

  std::shared_ptr<shiftadd_tokenizer> handle_;
};

// Decodes one token after the other; holds back the bytes of an unfinished character.
class TextStream {
 public:
  explicit TextStream(const Tokenizer& tokenizer, const Tokens& prompt = {}) {
    shiftadd_text_stream* handle = nullptr;
    check(
        shiftadd_text_stream_create(tokenizer.get(), prompt.data(), prompt.size(), &handle));
    handle_.reset(handle);
  }

  // Valid until the next call.
  std::string_view push(int32_t token) {
    const char* text = nullptr;
    size_t size = 0;
    check(shiftadd_text_stream_push(handle_.get(), token, &text, &size));
    return {text, size};
  }

  std::string_view finish() {
    const char* text = nullptr;
    size_t size = 0;
    check(shiftadd_text_stream_finish(handle_.get(), &text, &size));
    return {text, size};
  }

 private:
  struct Free {
    void operator()(shiftadd_text_stream* handle) const { shiftadd_text_stream_free(handle); }
  };
  std::unique_ptr<shiftadd_text_stream, Free> handle_;
};

}  // namespace shiftadd

#endif  // SHIFTADD_SHIFTADD_TEXT_HPP_
