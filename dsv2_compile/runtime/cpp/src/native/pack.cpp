#include "native/pack.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/error.h"

namespace dsv2 {
namespace {

// Temperature in fp32, finite so that logits of -inf stay impossible; all others are alike long before.
constexpr double kHottest = 1e38;

// ``choices``: one a sequence, as ``batch``; a sequence that is padding has one too.
enum class Extent { rows, tables, choices, batch, starts, context };

template <typename T>
uint32_t bits(T value) {
  static_assert(sizeof value == 4);
  uint32_t out;
  std::memcpy(&out, &value, sizeof out);
  return out;
}

// Writes 32-bit words one after the other.
class Words {
 public:
  explicit Words(char* out) : out_(out) {}
  template <typename T>
  void add(T value) {
    std::memcpy(out_, &value, 4);
    out_ += 4;
  }
  void add(int64_t value) { add(static_cast<int32_t>(value)); }

 private:
  char* out_;
};

int64_t cache_row(const Piece& piece, int64_t position, int64_t page) {
  return int64_t{piece.pages[position / page]} * page + position % page;
}

void tokens(const Pieces& pieces, Words out) {
  for (const Piece& p : pieces.list) {
    for (int64_t i = 0; i < p.count; ++i) out.add(p.ids[i]);
  }
}

void positions(const Pieces& pieces, Words out) {
  for (const Piece& p : pieces.list) {
    for (int64_t i = 0; i < p.count; ++i) out.add(p.past + i);
  }
}

void slots(const Pieces& pieces, Words out) {
  for (const Piece& p : pieces.list) {
    for (int64_t i = 0; i < p.count; ++i) out.add(cache_row(p, p.past + i, pieces.page));
  }
}

void sequence(const Pieces& pieces, Words out) {
  for (size_t b = 0; b < pieces.list.size(); ++b) {
    for (int64_t i = 0; i < pieces.list[b].count; ++i) out.add(static_cast<int64_t>(b));
  }
}

void page_table(const Pieces& pieces, Words out) {
  for (const Piece& p : pieces.list) {
    for (int64_t i = 0; i < pieces.pages; ++i) out.add(p.pages[i]);
  }
}

void query_start(const Pieces& pieces, Words out) {
  int64_t at = 0;
  out.add(at);
  for (const Piece& p : pieces.list) out.add(at += p.count);
}

void context_start(const Pieces& pieces, Words out) {
  int64_t at = 0;
  out.add(at);
  for (const Piece& p : pieces.list) out.add(at += p.past + p.count);
}

void context_slots(const Pieces& pieces, Words out) {
  for (const Piece& p : pieces.list) {
    for (int64_t i = 0; i < p.past + p.count; ++i) out.add(cache_row(p, i, pieces.page));
  }
}

void last_rows(const Pieces& pieces, Words out) {
  int64_t at = -1;
  for (const Piece& p : pieces.list) out.add(at += p.count);
}

template <auto member>
void chosen(const Pieces& pieces, Words out) {
  for (const Piece& p : pieces.list) out.add(p.choice.*member);
}

struct Input {
  const char* name;
  Dtype dtype;
  Extent extent;
  uint32_t padding;
  void (*write)(const Pieces& pieces, Words out);
};

const Input kInputs[] = {
    {"tokens", Dtype::i32, Extent::rows, 0, tokens},
    {"positions", Dtype::i32, Extent::rows, bits(-1), positions},
    {"slots", Dtype::i32, Extent::rows, bits(-1), slots},
    {"sequence", Dtype::i32, Extent::rows, 0, sequence},
    {"page_table", Dtype::i32, Extent::tables, 0, page_table},
    {"query_start", Dtype::i32, Extent::starts, 0, query_start},
    {"context_start", Dtype::i32, Extent::starts, 0, context_start},
    {"context_slots", Dtype::i32, Extent::context, 0, context_slots},
    {"last_rows", Dtype::i32, Extent::batch, 0, last_rows},
    {"temperature", Dtype::fp32, Extent::choices, bits(0.0f), chosen<&Choice::temperature>},
    {"top_p", Dtype::fp32, Extent::choices, bits(1.0f), chosen<&Choice::top_p>},
    {"top_k", Dtype::i32, Extent::choices, 0, chosen<&Choice::top_k>},
    {"uniform", Dtype::fp32, Extent::choices, bits(0.0f), chosen<&Choice::uniform>},
};

const Input* find_input(const Buffer& buffer) {
  for (const Input& input : kInputs) {
    if (buffer.name == input.name) return &input;
  }
  return nullptr;
}

// Whether rows may be added to a step: nothing of the input sums over them.
bool paddable(Extent extent) { return extent <= Extent::choices; }

int64_t count(Extent extent, const Sizes& sizes, int64_t pages) {
  switch (extent) {
    case Extent::rows: return sizes.rows;
    case Extent::choices:
    case Extent::batch: return sizes.batch;
    case Extent::starts: return sizes.batch + 1;
    case Extent::context: return sizes.context;
    default: return sizes.batch * pages;
  }
}

}  // namespace

Choice::Choice(const Draw& draw)
    : temperature(static_cast<float>(std::min(draw.sampling.temperature, kHottest))),
      top_p(static_cast<float>(draw.sampling.top_p)),
      uniform(static_cast<float>(draw.uniform)),
      top_k(static_cast<int32_t>(std::min<int64_t>(draw.sampling.top_k, std::numeric_limits<int32_t>::max()))) {}

Sizes Pieces::sizes(int64_t slots) const {
  Sizes out{0, static_cast<int64_t>(list.size()), 0, slots};
  for (const Piece& p : list) {
    out.rows += p.count;
    out.context += p.past + p.count;
  }
  return out;
}

void require_known_inputs(const Plan& plan) {
  for (const PlanProgram& program : plan.programs) {
    for (const Buffer& b : program.buffers) {
      if (b.place != Place::input) continue;
      const Input* input = find_input(b);
      if (input && input->dtype == b.dtype) continue;
      throw Error(DSV2_INCOMPATIBLE, "Program " + quoted(program.name) + " has an input " + quoted(b.name) +
                                         " that this runtime does not know.",
                  "Rebuild the engine with this version of dsv2-compile.");
    }
  }
}

void pack(const PlanProgram& program, const Pieces& pieces, const Sizes& sizes, const std::vector<int64_t>& offsets,
          char* out) {
  Sizes own = pieces.sizes(sizes.slots);
  bool padded = own.rows != sizes.rows;
  for (size_t i = 0; i < program.buffers.size(); ++i) {
    const Buffer& b = program.buffers[i];
    if (b.place != Place::input) continue;
    const Input& input = *find_input(b);
    int64_t written = count(input.extent, own, pieces.pages), whole = count(input.extent, sizes, pieces.pages);
    if (b.nbytes(sizes) != Wide{4} * whole || (padded && !paddable(input.extent))) {
      throw Error(DSV2_INTERNAL, "Input " + b.name + " of " + program.name + " is of another size than its tokens.",
                  "Report this as a bug, with the manifest.");
    }
    input.write(pieces, Words(out + offsets[i]));
    Words padding(out + offsets[i] + 4 * written);
    for (int64_t k = written; k < whole; ++k) padding.add(input.padding);
  }
}

}  // namespace dsv2
