// generate ENGINE [OPTIONS] < prompts: one prompt a line in, what follows it out, token by token as it is made.
//
// The prompts run together, in one scheduler; what comes out keeps their order. Exits as dsv2-compile does.
#include <cstdio>
#include <iostream>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "dsv2/dsv2.hpp"
#ifdef HAS_TEXT
#include "dsv2/dsv2_text.hpp"
#endif

namespace {

constexpr const char* kUsage =
    "usage: generate ENGINE [--ids] [--max-new-tokens N] [--temperature T] [--top-k K] [--top-p P] [--seed N] "
    "< prompts\n  one prompt a line; --ids: prompts and output are token ids, as 17 4 256\n";

struct Arguments {
  std::string engine;
  bool ids = false;
  int64_t max_new_tokens = 128;
  dsv2::Sampling sampling;
};

// All of ``text`` as a number.
template <class T>
bool parse(const char* text, T* out) {
  std::istringstream stream(text);
  return *text != '-' && stream >> *out && stream.eof();
}

std::optional<Arguments> parse_arguments(int count, char** given) {
  Arguments out;
  for (int i = 1; i < count; ++i) {
    const std::string flag = given[i];
    if (flag == "--ids") {
      out.ids = true;
    } else if (flag.compare(0, 2, "--") == 0) {
      const char* value = ++i < count ? given[i] : "";
      if (!(flag == "--max-new-tokens" ? parse(value, &out.max_new_tokens)
            : flag == "--temperature"  ? parse(value, &out.sampling.temperature)
            : flag == "--top-k"        ? parse(value, &out.sampling.top_k)
            : flag == "--top-p"        ? parse(value, &out.sampling.top_p)
            : flag == "--seed"         ? parse(value, &out.sampling.seed)
                                       : false)) {
        return std::nullopt;
      }
    } else if (out.engine.empty()) {
      out.engine = flag;
    } else {
      return std::nullopt;
    }
  }
  if (out.engine.empty()) return std::nullopt;
  return out;
}

// Prompts to ids, and tokens to what is shown of them.
class Codec {
 public:
  static dsv2::Result<Codec> open(const Arguments& arguments) {
    Codec codec;
    if (arguments.ids) return codec;
#ifdef HAS_TEXT
    auto text = dsv2::Text::open(arguments.engine);
    if (!text) return text.error();
    codec.text_ = std::make_shared<dsv2::Text>(std::move(*text));
    return codec;
#else
    return dsv2::Error{DSV2_USAGE, "This dsv2 was built without text.", "Pass token ids, with --ids.", {}};
#endif
  }

  dsv2::Result<dsv2::Ids> prompt(const std::string& line) const {
#ifdef HAS_TEXT
    if (text_) return text_->encode(line);
#endif
    dsv2::Ids ids;
    std::istringstream words(line);
    for (int32_t id; words >> id;) ids.push_back(id);
    if (!words.eof()) return dsv2::Error{DSV2_USAGE, "Not token ids: " + line, "Pass numbers, as 17 4 256.", {}};
    return ids;
  }

  // Shows the tokens of one prompt.
  class Shower {
   public:
    explicit Shower(const Codec& codec) {
#ifdef HAS_TEXT
      if (codec.text_) stream_.emplace(codec.text_->stream().value());
#else
      (void)codec;
#endif
    }

    std::string show(const dsv2::Token& token) {
      std::string out;
#ifdef HAS_TEXT
      if (stream_) {
        if (token.token >= 0 && token.finish != DSV2_STOP) out += stream_->push(token.token).value();
        if (token.finish) out += stream_->end().value() + "\n";
        return out;
      }
#endif
      if (token.token >= 0) out += std::to_string(token.token) + " ";
      return token.finish ? out + "\n" : out;
    }

   private:
#ifdef HAS_TEXT
    std::optional<dsv2::TextStream> stream_;
#endif
  };

 private:
#ifdef HAS_TEXT
  std::shared_ptr<dsv2::Text> text_;
#endif
};

// Writes what comes of many prompts in their order: the first that has not ended as it comes, the rest in its turn.
class Output {
 public:
  explicit Output(size_t prompts) : lines_(prompts) {}

  void add(size_t prompt, const std::string& text, bool ends) {
    lines_[prompt].text += text;
    lines_[prompt].ended = ends;
    for (; at_ < lines_.size(); ++at_) {
      std::cout << std::exchange(lines_[at_].text, "") << std::flush;
      if (!lines_[at_].ended) return;
    }
  }

 private:
  struct Line {
    std::string text;
    bool ended = false;
  };
  std::vector<Line> lines_;
  size_t at_ = 0;
};

int fail(const dsv2::Error& error) {
  std::fprintf(stderr, "error: %s\n", error.message().c_str());
  return error.code;
}

int run(const Arguments& arguments) {
  auto engine = dsv2::Engine::load(arguments.engine);
  if (!engine) return fail(engine.error());
  auto codec = Codec::open(arguments);
  if (!codec) return fail(codec.error());
  dsv2::Prompts prompts;
  for (std::string line; std::getline(std::cin, line);) {
    auto ids = codec->prompt(line);
    if (!ids) return fail(ids.error());
    prompts.push_back(std::move(*ids));
  }

  if (prompts.empty()) return fail({DSV2_USAGE, "There is no prompt.", "Pass one a line on standard input.", {}});

  // used on the scheduler's thread only, and outlive it
  Output output(prompts.size());
  int code = 0;
  auto scheduler = engine->scheduler({0, 0, 0, static_cast<int64_t>(prompts.size())});
  if (!scheduler) return fail(scheduler.error());
  for (size_t i = 0; i < prompts.size(); ++i) {
    auto shower = std::make_shared<Codec::Shower>(*codec);
    auto on_token = [&output, &code, shower, i](const dsv2::Token& token) {
      output.add(i, shower->show(token), token.finish != DSV2_RUNNING);
      if (token.finish == DSV2_FAILED) {
        std::fprintf(stderr, "error: prompt %zu: %s\n", i, token.cause);
        code = code ? code : token.code;
      }
      return false;
    };
    auto submitted = scheduler->submit({prompts[i], arguments.max_new_tokens, arguments.sampling, i, {}}, on_token);
    if (!submitted) return fail(submitted.error());
  }
  scheduler->drain().value();
  return code;
}

}  // namespace

int main(int count, char** given) {
  const std::optional<Arguments> arguments = parse_arguments(count, given);
  if (!arguments) {
    std::fputs(kUsage, stderr);
    return DSV2_USAGE;
  }
  return run(*arguments);
}
