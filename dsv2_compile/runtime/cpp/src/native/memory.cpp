#include "native/memory.h"

#include <algorithm>
#include <cstdio>
#include <tuple>

#include "base/error.h"
#include "native/launches.h"

namespace dsv2 {
namespace {

constexpr Wide kMost = Wide{1} << 56;  // bytes; six such fit 64 bits

// A number of bytes that will be asked for.
int64_t countable(Wide nbytes) {
  if (nbytes <= kMost) return static_cast<int64_t>(nbytes);
  throw Error(DSV2_RESOURCE, "The engine needs more memory than any GPU has.",
              "Load it with a smaller cache_tokens.");
}

auto key(const Placement& p) { return std::tie(p.file, p.offset, p.nbytes, p.dtype, p.shape); }

std::string mismatch(const Buffer& buffer, const std::map<std::string, Placement>& weights) {
  auto found = weights.find(buffer.name);
  if (found == weights.end()) return "missing";
  int64_t nbytes = countable(buffer.nbytes({0, 0, 0, 0}));
  std::string expected = kDtypeNames[static_cast<size_t>(buffer.dtype)];
  if (found->second.dtype == expected && found->second.nbytes == nbytes) return "";
  return found->second.dtype + " of " + std::to_string(found->second.nbytes) + " bytes, the plan has " +
         kDtypes[static_cast<size_t>(buffer.dtype)] + " of " + std::to_string(nbytes);
}

}  // namespace

int64_t aligned(int64_t nbytes) { return (nbytes + kAlignment - 1) / kAlignment * kAlignment; }

Area area(const PlanProgram& program, Place place, const Sizes& sizes) {
  Area out;
  out.offsets.reserve(program.buffers.size());
  for (const Buffer& b : program.buffers) {
    out.offsets.push_back(b.place == place ? out.nbytes : -1);
    if (b.place == place) out.nbytes = countable(out.nbytes + Wide{aligned(countable(b.nbytes(sizes)))});
  }
  return out;
}

const Buffer& cache_buffer(const Plan& plan) {
  const Buffer* found = nullptr;
  size_t kinds = 0;
  auto same = [](const Buffer& a, const Buffer& b) {
    return a.dtype == b.dtype && a.offset == b.offset && a.shape.size() == b.shape.size() &&
           std::equal(a.shape.begin(), a.shape.end(), b.shape.begin(),
                      [](const Expr& x, const Expr& y) { return x.text() == y.text(); });
  };
  for (const PlanProgram& program : plan.programs) {
    for (const Buffer& b : program.buffers) {
      if (b.place != Place::cache || (found && same(*found, b))) continue;
      found = &b;
      ++kinds;
    }
  }
  if (kinds == 1 && found->shape.size() == 3) return *found;
  throw Error(DSV2_INTEGRITY, "The plan has " + std::to_string(kinds) + " kinds of KV cache.",
              "Rebuild the engine with this version of dsv2-compile.");
}

WeightLayout weight_layout(const Plan& plan, const std::map<std::string, Placement>& weights) {
  std::map<std::string, const Buffer*> buffers;
  for (const PlanProgram& program : plan.programs) {
    for (const Buffer& b : program.buffers) {
      if (b.place == Place::weight) buffers[b.name] = &b;
    }
  }
  std::vector<std::string> problems;
  for (const auto& [name, buffer] : buffers) {
    std::string problem = mismatch(*buffer, weights);
    if (!problem.empty()) problems.push_back(name + ": " + problem);
  }
  if (!problems.empty()) {
    std::string count = std::to_string(problems.size());
    problems.resize(std::min<size_t>(problems.size(), 20));
    throw Error(DSV2_INTEGRITY,
                "The engine lacks " + count + " of the " + std::to_string(buffers.size()) + " weights of its plan.",
                kCopyAgain, std::move(problems));
  }
  std::vector<const Placement*> placed;
  for (const auto& item : buffers) placed.push_back(&weights.at(item.first));
  std::sort(placed.begin(), placed.end(), [](auto* a, auto* b) { return key(*a) < key(*b); });
  placed.erase(std::unique(placed.begin(), placed.end(), [](auto* a, auto* b) { return key(*a) == key(*b); }),
               placed.end());
  WeightLayout out;
  std::map<decltype(key(*placed[0])), int64_t> where;
  for (const Placement* p : placed) {
    out.reads.push_back({*p, out.nbytes});
    where.emplace(key(*p), out.nbytes);
    out.nbytes = countable(out.nbytes + Wide{aligned(countable(p->nbytes))});
  }
  for (const auto& item : buffers) out.offsets[item.first] = where.at(key(weights.at(item.first)));
  return out;
}

std::string gigabytes(int64_t nbytes) {
  char text[40];
  std::snprintf(text, sizeof text, "%.2f", static_cast<double>(nbytes) / 1e9);
  return text;
}

std::string Needs::text() const {
  return gigabytes(total()) + " GB (weights " + gigabytes(weights) + ", cache " + gigabytes(cache) + ", arena " +
         gigabytes(arena) + ", other " + gigabytes(inputs + outputs + scratch) + ")";
}

Needs memory_needs(const Plan& plan, const WeightLayout& weights, int64_t slots) {
  try {
    Needs out{weights.nbytes, aligned(countable(cache_buffer(plan).nbytes({0, 0, 0, slots}))), 0, 0, 0,
              aligned(countable(scratch_bytes(plan, slots)))};
    for (const PlanProgram& p : plan.programs) {
      out.arena = std::max(out.arena, aligned(countable(p.arena_bytes)));
      out.inputs = std::max(out.inputs, area(p, Place::input, p.limits(slots)).nbytes);
      out.outputs = std::max(out.outputs, area(p, Place::output, p.limits(slots)).nbytes);
    }
    return out;
  } catch (const Overflow&) {
    countable(kMost + 1);
    throw;
  }
}

}  // namespace dsv2
