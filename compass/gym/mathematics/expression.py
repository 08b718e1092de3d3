r"""A recursive-descent parser: tokens of one formula to one sympy expression, all of them or none.

Variables keep their case. Numbers are exact. Side by side means product, except that an integer
before a proper fraction is a mixed number, and two numbers side by side are nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import sympy
from sympy import Expr, Symbol

from compass.gym.mathematics import functions, words
from compass.gym.mathematics.answer import UnreadableError
from compass.gym.mathematics.tokens import Token

_MAX_DEPTH = 80
"""Of brackets, powers and functions in each other."""
_ACCENTS = words.listed(
    "overline bar vec hat tilde widehat widetilde overrightarrow overleftrightarrow mathbb"
)
_FENCES = {"(": ")", "[": "]", "{": "}", "\\{": "\\}"}
_NAMES = functions.NAMES | functions.NAMES_OF_SEVERAL | {"sqrt"}
_LETTERS = frozenset({"ell", "hbar", "nabla", "partial"})
_FACTORS = (
    {"frac", "sqrt", "binom", "lfloor", "lceil"}
    | set(functions.CONSTANTS)
    | _NAMES
    | _LETTERS
    | _ACCENTS
)
"""Commands that can be multiplied by what stands before them."""
_PRODUCT_COMMANDS = frozenset({"cdot", "times", "ast"})
_END = Token("sign", "")


def _is_prose(token: Token) -> bool:
    if (
        token.text in _NAMES
        or token.text in functions.GREEK
        or token.text.lower() in functions.CONSTANTS
    ):
        return False
    return words.is_plain_word(token.text) and (token.spaced or len(token.text) > 3)


def parse_expression(tokens: Sequence[Token]) -> Expr:
    """The formula that all tokens together are. Errors: `UnreadableError`."""
    parser = _Parser(tokens)
    try:
        expression = parser.sum()
    except (ArithmeticError, TypeError, ValueError, NotImplementedError) as error:
        raise UnreadableError(f"sympy cannot work it out: {error}") from error
    if not parser.at_end:
        raise UnreadableError(f"{parser.next.text!r} does not continue the formula")
    if expression.has(sympy.nan, sympy.zoo):
        raise UnreadableError("it has no value")
    return expression


def _in_base(digits: str, base: str) -> Fraction:
    """`2516_8`: digits in another base."""
    if not base.isdigit() or not 2 <= int(base) <= 10:
        raise UnreadableError(f"{digits} in base {base}")
    return Fraction(int(digits, int(base)))


class _Parser:
    def __init__(self, tokens: Sequence[Token]) -> None:
        self._tokens = tokens
        self._position = 0
        self._depth = 0

    @property
    def next(self) -> Token:
        return self._tokens[self._position] if not self.at_end else _END

    @property
    def at_end(self) -> bool:
        return self._position >= len(self._tokens)

    def _take(self) -> Token:
        token = self.next
        if self.at_end:
            raise UnreadableError("the formula breaks off")
        self._position += 1
        return token

    def _takes(self, *signs: str) -> bool:
        if self.next.kind == "sign" and self.next.text in signs:
            self._position += 1
            return True
        return False

    def _expect(self, sign: str) -> None:
        if not self._takes(sign):
            raise UnreadableError(f"{sign} is missing")

    def sum(self) -> Expr:
        """Terms with + and - between them."""
        self._enter()
        total = self._term()
        while True:
            if self._takes("+"):
                total = total + self._term()
            elif self._takes("-"):
                total = total - self._term()
            else:
                self._depth -= 1
                return total

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise UnreadableError("it is nested too deeply")

    def _term(self) -> Expr:
        return self._signs() * self._product(self._power())

    def _signs(self) -> int:
        """+1 or -1, for any number of signs."""
        sign = 1
        while self.next.kind == "sign" and self.next.text in ("+", "-"):
            sign *= -1 if self._take().text == "-" else 1
        return sign

    def _product(self, product: Expr) -> Expr:
        while True:
            if self._takes("*") or self._takes_command(_PRODUCT_COMMANDS):
                product = product * self._signed_power()
            elif self._takes("/") or self._takes_command({"div"}):
                product = functions.divided(product, self._signed_power())
            elif self._starts_factor():
                self._refuse_words()
                product = product * self._power()
            else:
                return product

    def _refuse_words(self) -> None:
        """Words may be multiplied by an operator, never by standing side by side."""
        for token in self._tokens[self._position - 1 : self._position + 1]:
            if token.kind == "word" and _is_prose(token):
                raise UnreadableError(f"the word {token.text!r} beside a formula")

    def _takes_command(self, names: frozenset[str] | set[str]) -> bool:
        if self.next.kind == "command" and self.next.text in names:
            self._position += 1
            return True
        return False

    def _starts_factor(self) -> bool:
        token = self.next
        if token.kind == "word":
            return True
        if token.kind == "command":
            return token.text in _FACTORS or token.text.lower() in functions.GREEK
        return token.kind == "sign" and token.text in ("(", "[", "{")

    def _signed_power(self) -> Expr:
        return self._signs() * self._power()

    def _power(self) -> Expr:
        self._enter()
        base = self._number(self._take()) if self.next.kind == "number" else self._atom()
        base = self._postfix(base)
        if self._takes("^", "**"):
            base = self._postfix(functions.power(base, self._exponent()))
        self._depth -= 1
        return base

    def _exponent(self) -> Expr:
        if self._takes("{"):
            return self._until("}")
        sign = self._signs()
        return sign * (self._power() if self.next.text != "(" else self._postfix(self._atom()))

    def _postfix(self, base: Expr) -> Expr:
        while True:
            if self._takes("!"):
                base = functions.factorial(base, double=self._takes("!"))
            elif self._takes("\x05"):
                base = base * sympy.pi / 180
            else:
                return base

    def _number(self, token: Token) -> Expr:
        assert token.number is not None, "number tokens hold their value"
        value = token.number
        following = self.next
        if following.kind == "number":
            raise UnreadableError(f"two numbers side by side, {token.text} and {following.text}")
        if token.is_integer and self._takes("_"):
            value = _in_base(token.text, self._subscript())
        if token.is_integer and following.kind == "command" and following.text == "frac":
            fraction = self._proper_fraction()
            if fraction is not None:
                value += fraction
        return functions.rational(value.numerator, value.denominator)

    def _proper_fraction(self) -> Fraction | None:
        r"""The fraction of a mixed number `3\frac{1}{2}`; None when it holds more than integers."""
        parts = self._tokens[self._position + 1 : self._position + 7]
        texts = [part.text for part in parts]
        if len(parts) < 6 or [texts[i] for i in (0, 2, 3, 5)] != ["{", "}", "{", "}"]:
            return None
        if not (parts[1].is_integer and parts[4].is_integer):
            return None
        numerator, denominator = int(texts[1]), int(texts[4])
        if not 0 < numerator < denominator:
            raise UnreadableError("an integer before an improper fraction: a sum or a product?")
        self._position += 7
        return Fraction(numerator, denominator)

    def _atom(self) -> Expr:
        token = self._take()
        if token.kind == "word":
            return self._word(token)
        if token.kind == "command":
            return self._command(token.text)
        if token.text == "|":
            return sympy.Abs(self._until("|"))
        if token.text in _FENCES and token.text != "\\{":
            return self._until(_FENCES[token.text])
        raise UnreadableError(f"unexpected {token.text!r}")

    def _until(self, closing: str) -> Expr:
        inner = self.sum()
        self._expect(closing)
        return inner

    def _word(self, token: Token) -> Expr:
        name = token.text
        if token.marked:
            raise UnreadableError(f"the word {name!r} inside a formula")
        if name.lower() in ("infinity", "inf", "pi"):
            return functions.CONSTANTS[name.lower()]
        if name in _NAMES:
            return self._function(name)
        if name in functions.GREEK:
            return self._symbol(name)
        if not name.isascii() or len(name) > 3:
            return self._symbol(name)
        return self._letters(name)

    def _letters(self, letters: str) -> Expr:
        if len(letters) == 2 and letters[0] == "d" and letters[1] in "xyztuvrs":
            return self._symbol(letters)  # a differential, which cancels nothing
        product: Expr = sympy.Integer(1)
        for letter in letters[:-1]:
            product = product * functions.CONSTANTS.get(letter, Symbol(letter))
        last = letters[-1]
        if last in "fgh" and self.next.text == "(" and not self.next.spaced:
            self._take()
            return product * Symbol(f"{last}({self._until(')')})")
        if last in functions.CONSTANTS and self.next.text not in ("_", "'"):
            factor = functions.CONSTANTS[last]
        else:
            factor = self._symbol(last)
        if len(letters) > 1 and self._takes("^", "**"):
            factor = functions.power(factor, self._exponent())
        return product * factor

    def _symbol(self, name: str) -> Expr:
        while self.next.text in ("_", "'"):
            name += self._take().text
            if name.endswith("_"):
                name += self._subscript()
        return Symbol(name)

    def _subscript(self) -> str:
        if not self._takes("{"):
            return self._take().text
        text = ""
        while not self._takes("}"):
            text += self._take().text
        return text

    def _command(self, name: str) -> Expr:
        if name == "frac":
            numerator = self._argument()
            return functions.divided(numerator, self._argument())
        if name == "sqrt":
            return self._root()
        if name == "binom":
            n = self._argument()
            return functions.binomial(n, self._argument())
        if name in ("lfloor", "lceil"):
            return self._rounded(name)
        if name in functions.CONSTANTS:
            return functions.CONSTANTS[name]
        if name in _NAMES:
            return self._function(name)
        if name.lower() in functions.GREEK or name in _LETTERS:
            return self._symbol(name)
        if name in _ACCENTS:
            return self._symbol(f"{name} {self._accented()}")
        raise UnreadableError(f"\\{name} is not known here")

    def _accented(self) -> str:
        if self._takes("{"):
            self._position -= 1
            text = self._balanced()
        else:
            text = self._take().text
        if any(character.isdigit() for character in text):
            raise UnreadableError(f"a bar over {text}")
        return text

    def _balanced(self) -> str:
        self._expect("{")
        text = ""
        while not self._takes("}"):
            text += self._take().text
        return text

    def _argument(self) -> Expr:
        """A group in braces, or one digit or letter, as TeX has it."""
        if self._takes("{"):
            return self._until("}")
        token = self.next
        if len(token.text) == 1 and token.kind == "number":
            self._position += 1
            assert token.number is not None, "number tokens hold their value"
            return functions.rational(token.number.numerator, 1)
        if token.kind == "command" or (token.kind == "word" and len(token.text) == 1):
            return self._atom()
        raise UnreadableError(f"what {token.text!r} belongs to is unclear; it needs braces")

    def _root(self) -> Expr:
        degree: Expr = sympy.Integer(2)
        if self._takes("["):
            degree = self._until("]")
        radicand = self._until(")") if self._takes("(") else self._argument()
        if degree.is_zero:
            raise UnreadableError("a root of degree 0")
        if degree.is_Integer and degree.is_odd and radicand.is_number and radicand.is_negative:
            return -functions.power(-radicand, 1 / degree)
        return functions.power(radicand, 1 / degree)

    def _rounded(self, name: str) -> Expr:
        inner = self.sum()
        closing = self._take()
        if closing.text != name.replace("l", "r", 1):
            raise UnreadableError(f"\\{name} is not closed")
        return sympy.floor(inner) if name == "lfloor" else sympy.ceiling(inner)

    def _function(self, name: str) -> Expr:
        if name in functions.NAMES_OF_SEVERAL:
            return self._of_several(name)
        base = exponent = None
        for _ in range(2):
            if name in ("log", "lg") and base is None and self._takes("_"):
                base = self._base()
            elif exponent is None and self._takes("^", "**"):
                exponent = self._exponent()
        if exponent == -1:
            name, exponent = functions.inverse_of(name), None
        argument = self._function_argument()
        if base is None:
            value = functions.applied(name, argument)
        else:
            value = functions.logarithm(argument, base)
        return value if exponent is None else functions.power(value, exponent)

    def _base(self) -> Expr:
        """Of a logarithm: a number stands alone, `log_2 8`."""
        if self.next.kind != "number":
            return self._argument()
        number = self._take().number
        assert number is not None, "number tokens hold their value"
        return functions.rational(number.numerator, number.denominator)

    def _of_several(self, name: str) -> Expr:
        closing = {"(": ")", "\\{": "\\}"}.get(self._take().text)
        if closing is None:
            raise UnreadableError(f"{name} needs brackets")
        arguments = [self.sum()]
        while self._takes(","):
            arguments.append(self.sum())
        self._expect(closing)
        return functions.applied_to_several(name, arguments)

    def _function_argument(self) -> Expr:
        r"""What a function without brackets applies to: `\sin 2x` is sin(2x), `\sin x\cos x` a
        product."""
        if self.next.text in ("(", "["):
            return self._postfix(self._atom())
        if self._takes("{"):
            return self._until("}")
        argument = self._signed_power()
        while self._starts_factor() and self.next.text not in _NAMES | {"(", "["}:
            argument = argument * self._power()
        following = self._tokens[self._position + 1 : self._position + 2]
        is_quotient = argument.is_number and following and following[0].kind == "number"
        if is_quotient and self._takes("/"):  # sin pi/4, but (sin x)/2
            argument = functions.divided(argument, self._power())
        return argument
