// generate ARTIFACT PROMPT [MAX_NEW_TOKENS]: continue a text greedily; prints the new text, nothing else.
#include <cstdlib>
#include <exception>
#include <iostream>

#include <shiftadd/shiftadd.hpp>
#include <shiftadd/shiftadd_text.hpp>

int main(int argc, char** argv) try {
  if (argc != 3 && argc != 4) {
    std::cerr << "usage: generate ARTIFACT PROMPT [MAX_NEW_TOKENS]\n";
    return 2;
  }
  shiftadd::GenerateOptions options;
  if (argc == 4) options.max_new_tokens = std::atoi(argv[3]);

  shiftadd::Model model(argv[1]);
  shiftadd::Tokenizer tokenizer(argv[1]);
  shiftadd::Session session(model);

  const shiftadd::Tokens prompt = tokenizer.encode(argv[2]);
  shiftadd::TextStream text(tokenizer, prompt);
  session.generate(prompt, options, [&](int32_t token) {
    std::cout << text.push(token) << std::flush;
    return true;
  });
  std::cout << text.finish() << std::flush;
  return 0;
} catch (const shiftadd::Error& error) {
  std::cerr << error.what() << '\n';
  return error.status();  // the command line's exit codes
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
