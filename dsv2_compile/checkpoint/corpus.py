"""The text that the tokenizers of made-up checkpoints are trained on."""

TEXT = '''\
A compiler reads a description of a computation and writes another description of the same computation, one that a
machine can carry out quickly. Between the two lies a chain of small changes. Each change keeps the meaning, and each
makes the program a little smaller, a little faster, or a little closer to the hardware. When a change is wrong, the
answer is wrong, and so every change has to be checked against the one before it.

A language model is given a sequence of tokens and predicts which token comes next. It does so layer after layer. In
every layer, attention lets each position look back at earlier positions, and a feed-forward network then works on each
position alone. A mixture of experts has many such networks and a router that sends every token to a few of them. Most
weights therefore rest while a token is computed, which saves arithmetic but not memory.

Low-rank compression of keys and values makes the cache small. Instead of a key and a value for every head, the model
stores one short vector per position, from which all heads recover what they need. During generation the matrices that
recover keys and values can be absorbed into their neighbours, so that the short vector is never expanded. During a long
prompt it is cheaper to expand it. Which of the two is better depends on how many new tokens there are, how many are
already cached, how many heads there are, and how fast the memory is compared with the arithmetic units.

The morning train left the harbour at six, as it had done for forty years, carrying fishermen, teachers, and a box of
oranges for the hospital. Rain had fallen all night. Along the river the fields were under water, and a grey horse stood
on the only dry hill, looking at nothing. "We will be late again," said the conductor, though nobody had asked. An old
woman opened her basket and shared bread, cheese and apples with the children across the aisle. They told her about
school: about the new library, the broken clock, the teacher who knew every star by name. Outside, the clouds began to
lift, and somewhere behind the mountains the sun was already warm.

What is the capital of France? The capital of France is Paris. How many days are there in a week? There are seven days
in a week: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday. The months are January, February, March,
April, May, June, July, August, September, October, November and December. Spring is followed by summer, autumn and
winter. Water boils at 100 degrees and freezes at 0. Light travels about 300,000 kilometres in one second. The Earth is
the third planet from the Sun; Mercury, Venus, Mars, Jupiter, Saturn, Uranus and Neptune are the others.

To bake a simple loaf, mix 500 grams of flour with 350 grams of warm water, ten grams of salt and seven of yeast. Knead
the dough until it is smooth, cover the bowl with a cloth, and let it rise for an hour. Shape it gently, wait another
thirty minutes, then bake it at 230 degrees until the crust is brown and the bottom sounds hollow when you knock on it.
Let it cool before cutting. Fresh bread keeps for two or three days; after that it makes excellent toast.

Good measurements are repeated. A single number hides the noise of the machine: other programs, changing clock speeds,
cold caches, the first call that allocates and the second that does not. Report the median and the spread, say which
machine and which versions were used, and keep the raw results so that somebody else can draw different conclusions.
If two things are compared, run them in turn, not one after the other, because the machine in the afternoon is not the
machine of the morning. Never compare a careful measurement with a careless one.

Errors should explain themselves. "Cannot open file" is worse than "Cannot read config.json: permission denied", and
that is worse than a message which also says what to do next. A program that fails should leave the
world as it found it:
no half-written output, no lost input, no process left behind. A program that is interrupted should be able to continue.

1 + 1 = 2, 2 + 2 = 4, 3 * 7 = 21, 144 / 12 = 12, 10 - 4 = 6, 2 ** 10 = 1024, 0.5 * 8 = 4.0, 17 % 5 = 2. Powers of two:
1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536. Prime numbers below fifty: 2, 3, 5,
7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47. In hexadecimal: 0x00, 0x0f, 0x1f, 0x7f, 0x80, 0xff, 0xdead, 0xbeef.

import argparse
import json
import os
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Point:
    """A point in the plane."""

    x: float = 0.0
    y: float = 0.0

    def distance(self, other: "Point") -> float:
        return ((self.x - other.x) ** 2 + (self.y - other.y) ** 2) ** 0.5

    def __add__(self, other: "Point") -> "Point":
        return Point(self.x + other.x, self.y + other.y)


def quicksort(items: list[int]) -> list[int]:
    if len(items) <= 1:
        return items
    pivot, *rest = items
    smaller = [item for item in rest if item < pivot]
    larger = [item for item in rest if item >= pivot]
    return quicksort(smaller) + [pivot] + quicksort(larger)


def fibonacci(n: int) -> int:
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


def count_words(path: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    with open(path, encoding="utf-8") as handle:
        for line in handle:
            counts.update(line.lower().split())
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the words of a file.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--top", type=int, default=10, help="how many words to print")
    args = parser.parse_args()
    if not args.path.exists():
        print(f"error: {args.path} does not exist", file=sys.stderr)
        raise SystemExit(2)
    try:
        counts = count_words(args.path)
    except UnicodeDecodeError as error:
        raise ValueError(f"not a text file: {error}") from None
    for word, number in counts.most_common(args.top):
        print(json.dumps({"word": word, "count": number}))
    while True:
        break


if __name__ == "__main__":
    main()

#include <cstdint>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

namespace example {

template <typename T>
class Matrix {
 public:
  Matrix(std::size_t rows, std::size_t columns) : rows_(rows), columns_(columns), values_(rows * columns) {}

  T& at(std::size_t row, std::size_t column) {
    if (row >= rows_ || column >= columns_) {
      throw std::out_of_range("Matrix::at");
    }
    return values_[row * columns_ + column];
  }

 private:
  std::size_t rows_;
  std::size_t columns_;
  std::vector<T> values_;
};

static void softmax(const float* input, float* output, int64_t length) {
  float largest = input[0];
  for (int64_t i = 1; i < length; ++i) {
    largest = input[i] > largest ? input[i] : largest;
  }
  float sum = 0.0f;
  for (int64_t i = 0; i < length; ++i) {
    output[i] = std::exp(input[i] - largest);
    sum += output[i];
  }
  for (int64_t i = 0; i < length; ++i) {
    output[i] /= sum;
  }
}

}  // namespace example

int main(int argc, char** argv) {
  std::vector<std::string> arguments(argv + 1, argv + argc);
  std::cout << "arguments: " << arguments.size() << std::endl;
  return 0;
}

SELECT name, COUNT(*) AS total FROM orders WHERE price > 100 GROUP BY name ORDER BY total DESC LIMIT 20;
{"model": "example", "layers": 27, "experts": 64, "dtype": "bfloat16", "shape": [2048, 10944], "tied": false}
<html><head><title>Hello, world!</title></head><body class="page"><p>Welcome.</p></body></html>
git commit -m "Fix the reader" && make test && python -m pytest -q tests/ || echo "failed" >&2
https://example.com/path/to/page?query=value&other=1#section

Once there was a lighthouse keeper who wrote a letter every evening and threw it into the sea. He wrote about the ships
he had seen, the colour of the waves, the birds that rested on the railing. He never signed his name. Years later, in a
village on the opposite coast, a young carpenter found a bottle between two rocks, and inside it, dry and perfectly
folded, a description of the very storm in which she had been born. She built a small boat and went to look for him.

Questions begin with who, what, when, where, why or how. Could you help me? Yes, of course; please tell me what
happened. I don't know, I can't remember, it wasn't there, they haven't arrived, she's thinking,
we'll see, you're right,
let's go. However, therefore, although, because, unless, whether, perhaps, certainly, possibly,
probably, nevertheless, meanwhile.

At the market you can buy carrots, onions, tomatoes, spinach, mushrooms, garlic, lemons, walnuts, honey, butter, smoked
salmon and dark chocolate. The violin, the trumpet, the cello and the drum belong to the orchestra; the guitar does not.
A physician examines patients, an architect designs houses, a lawyer argues, an engineer calculates, a farmer ploughs,
a musician practises, a journalist investigates, a gardener waters roses. Elephants, squirrels, dolphins, penguins,
butterflies and spiders are animals. Gold, silver, copper, iron, oxygen and carbon are elements. History, geography,
biology, chemistry, philosophy and mathematics are subjects. Triangles, circles, squares and pyramids are shapes.
'''
