// Draws tokens, to be compared with Python's: a host that is built against a bundle and nothing else.
//
//     token_host ARTIFACT COUNT TEMPERATURE TOP_K TOP_P PENALTY SEED < PROMPTS
//
// A line of PROMPTS is a text; a line of the answer its ids and those of COUNT new tokens.
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <shiftadd/shiftadd_text.hpp>

int main(int count, char** words) try {
  if (count != 8) return 2;
  shiftadd::GenerateOptions options;
  options.max_new_tokens = std::atoi(words[2]);
  options.ignore_eos = true;
  options.sampling.temperature = std::strtof(words[3], nullptr);
  options.sampling.top_k = std::atoi(words[4]);
  options.sampling.top_p = std::strtof(words[5], nullptr);
  options.sampling.repetition_penalty = std::strtof(words[6], nullptr);
  options.sampling.seed = std::atoll(words[7]);
  shiftadd::ModelOptions one;
  one.threads = 1;
  const shiftadd::Model model(words[1], one);
  const shiftadd::Tokenizer tokenizer(words[1]);
  for (std::string prompt; std::getline(std::cin, prompt);) {
    const shiftadd::Tokens ids = tokenizer.encode(prompt, SHIFTADD_AROUND_NOTHING);
    shiftadd::Session session(model);
    for (const int32_t id : ids) std::printf("%d ", id);
    for (const int32_t id : session.generate(ids, options)) std::printf("%d ", id);
    std::printf("\n");
  }
} catch (const shiftadd::Error& error) {
  std::fprintf(stderr, "token_host: %s\n", error.what());
  return 1;
}
