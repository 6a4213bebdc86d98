// The C ABI of shiftadd_text.h: arguments are checked, exceptions become statuses and sentences.
#include "shiftadd/shiftadd_text.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <string>

#include "chat_form.h"
#include "failure.h"
#include "../src/json.h"
#include "stream.h"
#include "tokenizer.h"
#include "../src/utf8.h"

using shiftadd::internal::guarded;
using shiftadd::text::ChatForm;
using shiftadd::text::Failure;
using shiftadd::text::Id;
using shiftadd::text::Stream;
using shiftadd::text::Tokenizer;
namespace json = shiftadd::json;

namespace {

constexpr const char* kTokenizer = "tokenizer.json";
constexpr const char* kConfig = "tokenizer_config.json";
constexpr const char* kChatForm = "chat_form.json";

struct Loaded {
  std::unique_ptr<Tokenizer> tokenizer;
  std::optional<ChatForm> chat;
};

void require(bool given, const char* what) {
  if (!given) shiftadd::text::usage(std::string(what) + " is NULL");
}

// Read one file of a tokenizer; failures name it.
template <typename Body>
void reading(const char* name, const Body& body) {
  try {
    body();
  } catch (const json::Error& error) {
    shiftadd::internal::fail(SHIFTADD_ERROR_BAD_FILE, std::string(name) + " cannot be read: " +
                                                          error.what() + "; get the model's own again.");
  } catch (const Failure& failure) {
    const bool unknown = failure.status == SHIFTADD_ERROR_UNSUPPORTED;
    shiftadd::internal::fail(failure.status, std::string(name) + (unknown ? " has " : " cannot be read: ") +
                                                 failure.sentence +
                                                 (unknown ? "; tokenize with Python's tokenizers instead."
                                                          : "; get the model's own again."));
  }
}

void choose_bos(std::string_view config, Tokenizer* tokenizer) {
  std::optional<bool> wanted;
  std::string name;
  if (!config.empty()) {
    const json::Document document(config);
    const json::Value root = document.root();
    if (root.is(json::Kind::kObject)) {
      const json::Value flag = root.find("add_bos_token");
      if (flag.is(json::Kind::kTrue) || flag.is(json::Kind::kFalse)) wanted = flag.boolean();
      json::Value token = root.find("bos_token");
      if (token.is(json::Kind::kObject)) token = token.find("content");
      if (token.is(json::Kind::kString)) name = token.string();
    }
  }
  tokenizer->choose_bos(wanted, name);
}

std::shared_ptr<Loaded> load(std::string_view tokenizer, std::string_view config,
                             std::string_view chat_form) {
  auto loaded = std::make_shared<Loaded>();
  reading(kTokenizer, [&] {
    const json::Document document(tokenizer);
    loaded->tokenizer = std::make_unique<Tokenizer>(document);
  });
  reading(kConfig, [&] { choose_bos(config, loaded->tokenizer.get()); });
  if (!chat_form.empty()) {
    reading(kChatForm, [&] { loaded->chat.emplace(json::Document(chat_form).root()); });
  }
  return loaded;
}

std::optional<std::string> read_file(const std::string& folder, const char* name) {
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  const std::unique_ptr<std::FILE, Close> file(std::fopen((folder + "/" + name).c_str(), "rb"));
  if (!file) return std::nullopt;
  const long size = std::fseek(file.get(), 0, SEEK_END) ? -1 : std::ftell(file.get());
  if (size < 0 || static_cast<size_t>(size) > json::kMaxBytes) {
    shiftadd::text::bad_file(folder + "/" + name + " is no file of at most " +
                             std::to_string(json::kMaxBytes) + " bytes");
  }
  std::string content(static_cast<size_t>(size), '\0');
  std::rewind(file.get());
  const size_t got = std::fread(content.data(), 1, content.size(), file.get());
  if (got != content.size()) shiftadd::text::bad_file(folder + "/" + name + " cannot be read whole");
  return content;
}

std::string_view view(const void* data, size_t size) {
  return data ? std::string_view(static_cast<const char*>(data), size) : std::string_view();
}

void fill(const std::string& text, char* buffer, size_t capacity, size_t* size) {
  require(size, "size");
  require(buffer || capacity == 0, "buffer");
  if (capacity > 0) {
    const size_t copied = std::min(text.size(), capacity - 1);
    std::memcpy(buffer, text.data(), copied);
    buffer[copied] = '\0';
  }
  *size = text.size();
}

}  // namespace

struct shiftadd_tokenizer {
  std::shared_ptr<Loaded> loaded;
};

struct shiftadd_text_stream {
  std::shared_ptr<Loaded> loaded;
  Stream stream;
  std::string text;
};

shiftadd_status shiftadd_tokenizer_load(const char* path, shiftadd_tokenizer** tokenizer) {
  return guarded([&] {
    require(path, "path");
    require(tokenizer, "tokenizer");
    const std::optional<std::string> main = read_file(path, kTokenizer);
    if (!main) {
      shiftadd::text::bad_file(std::string(path) + " has no " + kTokenizer +
                               "; give the folder of an artifact whose model has one");
    }
    *tokenizer = new shiftadd_tokenizer{
        load(*main, read_file(path, kConfig).value_or(""), read_file(path, kChatForm).value_or(""))};
  });
}

shiftadd_status shiftadd_tokenizer_create(const shiftadd_tokenizer_files* files,
                                          shiftadd_tokenizer** tokenizer) {
  return guarded([&] {
    require(files && files->tokenizer, "files->tokenizer");
    require(tokenizer, "tokenizer");
    *tokenizer = new shiftadd_tokenizer{load(view(files->tokenizer, files->tokenizer_size),
                                             view(files->config, files->config_size),
                                             view(files->chat_form, files->chat_form_size))};
  });
}

void shiftadd_tokenizer_free(shiftadd_tokenizer* tokenizer) { delete tokenizer; }

size_t shiftadd_tokenizer_count(const shiftadd_tokenizer* tokenizer) {
  return tokenizer ? tokenizer->loaded->tokenizer->count() : 0;
}

int32_t shiftadd_tokenizer_bos(const shiftadd_tokenizer* tokenizer) {
  return tokenizer ? tokenizer->loaded->tokenizer->bos().value_or(-1) : -1;
}

int32_t shiftadd_tokenizer_id(const shiftadd_tokenizer* tokenizer, const char* text, size_t text_size) {
  int32_t id = -1;
  guarded([&] {
    if (tokenizer && text) id = tokenizer->loaded->tokenizer->id({text, text_size}).value_or(-1);
  });
  return id;
}

shiftadd_status shiftadd_tokenizer_token(const shiftadd_tokenizer* tokenizer, int32_t id, char* buffer,
                                         size_t capacity, size_t* size) {
  return guarded([&] {
    require(tokenizer, "tokenizer");
    const std::optional<std::string> token = tokenizer->loaded->tokenizer->token(id);
    if (!token) shiftadd::text::usage("There is no token with id " + std::to_string(id));
    fill(*token, buffer, capacity, size);
  });
}

shiftadd_status shiftadd_tokenizer_encode(const shiftadd_tokenizer* tokenizer, const char* text,
                                          size_t text_size, shiftadd_around around, int32_t* tokens,
                                          size_t capacity, size_t* count) {
  return guarded([&] {
    require(tokenizer, "tokenizer");
    require(text || text_size == 0, "text");
    require(tokens || capacity == 0, "tokens");
    require(count, "count");
    if (around < SHIFTADD_AROUND_NOTHING || around > SHIFTADD_AROUND_TEMPLATE) {
      shiftadd::text::usage("Around is " + std::to_string(around) + ", expected 0, 1 or 2");
    }
    const std::vector<Id> ids = tokenizer->loaded->tokenizer->encode(
        view(text, text_size), static_cast<Tokenizer::Around>(around));
    std::copy_n(ids.begin(), std::min(ids.size(), capacity), tokens);
    *count = ids.size();
  });
}

shiftadd_status shiftadd_tokenizer_decode(const shiftadd_tokenizer* tokenizer, const int32_t* tokens,
                                          size_t count, int32_t keep_special, char* buffer,
                                          size_t capacity, size_t* size) {
  return guarded([&] {
    require(tokenizer, "tokenizer");
    require(tokens || count == 0, "tokens");
    const std::vector<Id> ids(tokens, tokens + count);
    fill(tokenizer->loaded->tokenizer->decode(ids, keep_special == 0), buffer, capacity, size);
  });
}

shiftadd_status shiftadd_text_stream_create(const shiftadd_tokenizer* tokenizer, const int32_t* prompt,
                                            size_t prompt_count, shiftadd_text_stream** stream) {
  return guarded([&] {
    require(tokenizer, "tokenizer");
    require(prompt || prompt_count == 0, "prompt");
    require(stream, "stream");
    *stream = new shiftadd_text_stream{
        tokenizer->loaded, Stream(*tokenizer->loaded->tokenizer, prompt, prompt_count), {}};
  });
}

void shiftadd_text_stream_free(shiftadd_text_stream* stream) { delete stream; }

shiftadd_status shiftadd_text_stream_push(shiftadd_text_stream* stream, int32_t token, const char** text,
                                          size_t* size) {
  return guarded([&] {
    require(stream, "stream");
    require(text && size, "text or size");
    stream->text = stream->stream.push(token);
    *text = stream->text.c_str();
    *size = stream->text.size();
  });
}

shiftadd_status shiftadd_text_stream_finish(shiftadd_text_stream* stream, const char** text, size_t* size) {
  return guarded([&] {
    require(stream, "stream");
    require(text && size, "text or size");
    stream->text = stream->stream.finish();
    *text = stream->text.c_str();
    *size = stream->text.size();
  });
}

int32_t shiftadd_tokenizer_has_chat(const shiftadd_tokenizer* tokenizer) {
  return tokenizer && tokenizer->loaded->chat ? 1 : 0;
}

shiftadd_status shiftadd_tokenizer_render(const shiftadd_tokenizer* tokenizer,
                                          const shiftadd_message* messages, size_t count, char* buffer,
                                          size_t capacity, size_t* size) {
  return guarded([&] {
    require(tokenizer, "tokenizer");
    require(messages || count == 0, "messages");
    const std::optional<ChatForm>& chat = tokenizer->loaded->chat;
    if (!chat) {
      shiftadd::text::unsupported(
          std::string("the artifact has no ") + kChatForm +
          ": its model has no chat template, or one that is not literal text between messages; write the "
          "conversation yourself, or use shiftadd-tvm chat");
    }
    std::vector<ChatForm::Message> plain;
    for (size_t i = 0; i < count; ++i) {
      require(messages[i].role && messages[i].content, "a message's role or content");
      if (shiftadd::utf8::first_invalid(messages[i].content) != std::strlen(messages[i].content)) {
        shiftadd::text::usage("Message " + std::to_string(i) + " is not UTF-8");
      }
      plain.push_back({messages[i].role, messages[i].content});
    }
    fill(chat->render(plain), buffer, capacity, size);
  });
}
