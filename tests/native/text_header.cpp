// text_header FOLDER TEXT: use every function of shiftadd_text.hpp, and print what each says, a line for each.
#include <cstdio>
#include <fstream>
#include <iterator>

#include <shiftadd/shiftadd_text.hpp>

namespace {

std::string read(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

void print(const char* name, const std::string& text) { std::printf("%s %s\n", name, text.c_str()); }

std::string joined(const shiftadd::Tokens& tokens) {
  std::string line;
  for (const int32_t token : tokens) line += (line.empty() ? "" : " ") + std::to_string(token);
  return line;
}

std::string shown(std::optional<int32_t> id) { return id ? std::to_string(*id) : "none"; }

void use(const shiftadd::Tokenizer& tokenizer, const std::string& text) {
  const shiftadd::Tokens plain = tokenizer.encode(text, SHIFTADD_AROUND_NOTHING);
  print("count", std::to_string(tokenizer.count()));
  print("bos", shown(tokenizer.bos()));
  print("id", shown(tokenizer.id(tokenizer.token(plain[0]))) + " " + shown(tokenizer.id("no such token")));
  print("token", tokenizer.token(plain[1]));
  print("plain", joined(plain));
  print("begun", joined(tokenizer.encode(text)));
  print("whole", joined(tokenizer.encode(text, SHIFTADD_AROUND_TEMPLATE)));
  print("decoded", tokenizer.decode(plain));
  print("special", tokenizer.decode({plain[0], tokenizer.bos().value_or(0)}, true));
  print("chat", tokenizer.has_chat() ? tokenizer.render({{"user", "hi"}, {"assistant", "ho"}, {"user", text}}) : "");
  shiftadd::TextStream stream(tokenizer, {plain[0]});
  std::string streamed;
  for (size_t i = 1; i < plain.size(); ++i) streamed += stream.push(plain[i]);
  streamed += stream.finish();
  print("streamed", streamed);
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 3) return 2;
  const std::string folder = argv[1], main = read(folder + "/tokenizer.json"),
                    config = read(folder + "/tokenizer_config.json"), form = read(folder + "/chat_form.json");
  use(shiftadd::Tokenizer(folder), argv[2]);
  const shiftadd::Tokenizer same({main.data(), main.size(), config.data(), config.size(), form.data(), form.size()});
  const shiftadd::Tokenizer copy = same;
  use(copy, argv[2]);
  print("handle", copy.get() == same.get() ? "shared" : "copied");
  shiftadd::Tokenizer("absent");
  return 1;
} catch (const shiftadd::Error& error) {
  print("error", std::to_string(error.status()) + " " + error.what());
  return 0;
}
