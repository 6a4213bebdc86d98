// chat ARTIFACT [SEED]: talk with a model. Answers stream; Ctrl-C ends an answer, Ctrl-D the conversation.
//
// The conversation stays in the cache: each turn appends only what is new.
#include <csignal>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <string>
#include <vector>

#include <shiftadd/shiftadd.hpp>
#include <shiftadd/shiftadd_text.hpp>

namespace {

shiftadd_session* volatile answering = nullptr;  // while there is an answer to be ended

void interrupt(int) {
  if (!answering) std::_Exit(130);
  shiftadd_session_cancel(answering);
}

// The tokens of `wanted` that follow what the session holds; it forgets where the two differ.
shiftadd::Tokens continuation(shiftadd::Session& session, const shiftadd::Tokens& wanted) {
  const shiftadd::Tokens held = session.tokens();
  size_t same = 0;
  // at least one token is appended, so that there are logits to go on from
  while (same < held.size() && same + 1 < wanted.size() && held[same] == wanted[same]) ++same;
  session.truncate(same);
  return {wanted.begin() + static_cast<std::ptrdiff_t>(same), wanted.end()};
}

// Stream the answer to a conversation, and return it.
std::string answer(shiftadd::Session& session, const shiftadd::Tokenizer& tokenizer,
                   const std::vector<shiftadd::Message>& messages, const shiftadd::GenerateOptions& options) {
  const shiftadd::Tokens all = tokenizer.encode(tokenizer.render(messages), SHIFTADD_AROUND_NOTHING);
  shiftadd::TextStream text(tokenizer, all);
  std::string said;
  const auto show = [&](std::string_view piece) {
    std::cout << piece << std::flush;
    said += piece;
  };
  answering = session.get();
  try {
    session.generate(continuation(session, all), options, [&](int32_t token) {
      show(text.push(token));
      return true;
    });
  } catch (const shiftadd::Error& error) {
    if (error.status() != SHIFTADD_CANCELLED) throw;
  }
  answering = nullptr;
  show(text.finish());
  std::cout << '\n';
  return said;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 2 && argc != 3) {
    std::cerr << "usage: chat ARTIFACT [SEED]\n";
    return 2;
  }
  shiftadd::GenerateOptions options;
  options.max_new_tokens = 512;
  options.sampling.temperature = 0.7f;
  options.sampling.top_p = 0.9f;
  if (argc == 3) options.sampling.seed = std::atoll(argv[2]);

  shiftadd::ModelOptions loading;
  loading.sequences = 1;  // the cache of one conversation
  shiftadd::Model model(argv[1], loading);
  shiftadd::Tokenizer tokenizer(argv[1]);
  shiftadd::Session session(model);
  std::signal(SIGINT, interrupt);

  std::vector<shiftadd::Message> messages;
  std::string line;
  while (std::cout << "> " << std::flush && std::getline(std::cin, line)) {
    if (line.empty()) continue;
    messages.push_back({"user", line});
    messages.push_back({"assistant", answer(session, tokenizer, messages, options)});
  }
  std::cout << '\n';
  return 0;
} catch (const shiftadd::Error& error) {
  std::cerr << error.what() << '\n';
  return error.status();  // the command line's exit codes
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
