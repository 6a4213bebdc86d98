// libFuzzer's target: a tokenizer's files and a text, in one input, must give ids or a status, and what was
// encoded must decode.
//
//     input = tokenizer.json, byte 0, chat_form.json, byte 0, text
//
// Where the part before the first 0 is empty, a tokenizer that is known to be good takes its place, so that
// texts are tried as well: the file that the environment variable SHIFTADD_FUZZ_TOKENIZER names.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "shiftadd/shiftadd_text.h"

namespace {

std::string read_good() {
  const char* path = std::getenv("SHIFTADD_FUZZ_TOKENIZER");
  std::string content;
  std::FILE* file = path ? std::fopen(path, "rb") : nullptr;
  if (!file) return content;
  char buffer[4096];
  while (size_t count = std::fread(buffer, 1, sizeof buffer, file)) content.append(buffer, count);
  std::fclose(file);
  return content;
}

shiftadd_tokenizer* open(std::string_view tokenizer, std::string_view form) {
  const shiftadd_tokenizer_files files = {tokenizer.data(), tokenizer.size(), nullptr, 0,
                                          form.data(),      form.size()};
  shiftadd_tokenizer* handle = nullptr;
  const shiftadd_status status = shiftadd_tokenizer_create(&files, &handle);
  if ((status == SHIFTADD_OK) != (handle != nullptr)) std::abort();
  if (status == SHIFTADD_ERROR_INTERNAL) std::abort();
  if (status != SHIFTADD_OK && !*shiftadd_last_error()) std::abort();
  return handle;
}

void stream(const shiftadd_tokenizer* tokenizer, const std::vector<int32_t>& tokens) {
  shiftadd_text_stream* handle = nullptr;
  if (shiftadd_text_stream_create(tokenizer, tokens.data(), tokens.size() / 2, &handle)) std::abort();
  const char* text = nullptr;
  size_t size = 0;
  for (const int32_t token : tokens) {
    if (shiftadd_text_stream_push(handle, token, &text, &size)) std::abort();
  }
  if (shiftadd_text_stream_finish(handle, &text, &size)) std::abort();
  shiftadd_text_stream_free(handle);
}

void use(const shiftadd_tokenizer* tokenizer, std::string_view text) {
  size_t count = 0;
  std::vector<int32_t> tokens(text.size() * 8 + 64);
  for (int around = 0; around < 3; ++around) {
    const shiftadd_status status =
        shiftadd_tokenizer_encode(tokenizer, text.data(), text.size(), static_cast<shiftadd_around>(around),
                                  tokens.data(), tokens.size(), &count);
    if (status == SHIFTADD_ERROR_INTERNAL) std::abort();
    if (status != SHIFTADD_OK) return;
  }
  tokens.resize(count < 64 ? count : 64);
  char buffer[16];
  size_t size = 0;
  if (shiftadd_tokenizer_decode(tokenizer, tokens.data(), tokens.size(), 0, buffer, sizeof buffer, &size)) {
    std::abort();
  }
  stream(tokenizer, tokens);
  const std::string content(text.substr(0, text.find('\0')));
  const shiftadd_message messages[] = {{"system", content.c_str()}, {"user", content.c_str()}};
  const shiftadd_status status =
      shiftadd_tokenizer_render(tokenizer, messages, 2, buffer, sizeof buffer, &size);
  if (status == SHIFTADD_ERROR_INTERNAL) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string good = read_good();
  static shiftadd_tokenizer* const good_tokenizer = good.empty() ? nullptr : open(good, {});
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t first = input.find('\0');
  if (first == input.npos) {
    shiftadd_tokenizer_free(open(input, {}));
    return 0;
  }
  const size_t second = input.find('\0', first + 1);
  const std::string_view form = input.substr(first + 1, second == input.npos ? second : second - first - 1);
  const std::string_view text = second == input.npos ? std::string_view() : input.substr(second + 1);
  if (first == 0 && good_tokenizer) {
    use(good_tokenizer, text);
    return 0;
  }
  shiftadd_tokenizer* const tokenizer = open(input.substr(0, first), form);
  if (tokenizer) use(tokenizer, text);
  shiftadd_tokenizer_free(tokenizer);
  return 0;
}
