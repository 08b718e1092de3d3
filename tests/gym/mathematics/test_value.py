"""Numbers and formulas in every notation, both ways; `boxed_answers` reads the tables."""

from __future__ import annotations

import pytest

from tests.gym.mathematics.boxed_answers import mistakes

KINDS = {
    "digits of other scripts": r"""
72  ==  ৭২  |  ७२  |  ೭೨  |  ၇၂  |  ໗໒  |  ٧٢  |  ۷۲  |  𝟕𝟐  |  ７２  |  ៧២  |  ๗๒  |  ௭௨
৭২  ==  72
73  !=  ৭২  |  ७२  |  ೭೨  |  ၇၂  |  ໗໒  |  ٧٢  |  ۷۲  |  𝟕𝟐  |  ７２  |  ៧២  |  ๗๒  |  ௭௨
७२  ==  72
೭೨  ==  72
၇၂  ==  72
໗໒  ==  72
٧٢  ==  72
۷۲  ==  72
𝟕𝟐  ==  72
７２  ==  72
៧២  ==  72
๗๒  ==  72
௭௨  ==  72
3.5  ==  ۳٫۵  |  ৩.৫  |  3．5
-72  ==  −๗๒  |  －７２  |  -७२
1/2  ==  １／２  |  ๑/๒
1234  ==  ১,২৩৪  |  １，２３４  |  1,234
""",
    "Unicode signs": r"""
3  ==  x＝3  |  x = 3
\frac{3}{4}  ==  ¾
2/3  ==  ⅔
-1/2  ==  −½
x^{10}  ==  x¹⁰
x^{-1}  ==  x⁻¹
\sqrt{2}  ==  √2  |  √(2)  |  √{2}
2\sqrt{3}  ==  2√3
\pi  ==  π
2\times 3  ==  6
6  ==  2×3  |  2·3  |  12÷2
x\le 3  ==  x≤3
x\ne 3  ==  x≠3
\alpha+\beta  ==  α+β
\{1,2\}  ==  ｛1，2｝
[0,1]  ==  ［0，1］
\pm 2  ==  ±2
5  ==  ５
a_1  ==  a₁
(-\infty,\infty)  ==  (−∞,∞)  |  (-\infty,+\infty)
3  !=  x²
\sqrt{2}  !=  √3
x^2  !=  x³
9  !=  3²x
9  ==  3²
\infty  !=  -\infty  |  −∞
-\infty  ==  −∞
""",
    "separators of thousands": r"""
10000  ==  10,000  |  10 000  |  10\,000  |  10{,}000  |  10\;000  |  10~000  |  10'000  |  10000
10000  ==  10{,}000.00  |  10000.  |  1e4  |  10^4
1234567  ==  1,234,567  |  1 234 567  |  1.234.567  |  12,34,567
1234.56  ==  1,234.56  |  1.234,56  |  1 234.56
10  !=  10 000  |  10,000  |  10\,000
0  !=  10 000  |  10,000
1000  !=  1,00,0  |  1 00 0
10000  !=  10,00  |  1,000  |  1 000
12  !=  1 2  |  1,2
3  !=  1 2  |  1,2
1  !=  1,000
10.000  !=  10,000
10  ==  10.000
123  !=  1,23  |  12,3
1,000  ==  1000
12,345.67  ==  12345.67
1,000  !=  1
10 000  ==  10000
1,2  ==  1, 2  |  2,1
""",
    "currency and percent": r"""
18  ==  \$18  |  $18  |  18\$  |  18 dollars  |  \$18.00  |  18 USD  |  US\$18  |  ¥18  |  £18
18  ==  ₹18  |  ₫18  |  18₫  |  18 €  |  € 18  |  RM18  |  RM 18  |  Rp18  |  18 baht  |  18 บาท
18  ==  USD 18  |  18.0  |  \text{\$}18  |  18 \text{ dollars}  |  ₩18  |  Rp. 18  |  18元
18  ==  18 rupees  |  S\$18
\$18  ==  18  |  $18
\$1,234.50  ==  1234.5
18  !=  \$17  |  €81  |  -\$18  |  \$1.8
-18  ==  -\$18  |  \$-18  |  -€18
\$5  !=  €5
\$5  ==  5 dollars
0.5  ==  50\%  |  50%  |  50 percent
50\%  ==  0.5  |  1/2  |  50  |  \frac{1}{2}  |  50 \%  |  50\text{ percent}  |  50%
12.5\%  ==  1/8  |  0.125
50\%  !=  5  |  0.05  |  0.50\%  |  500
0.5  !=  0.5\%  |  5\%
1  !=  1\%  |  0.01
28  !=  0.28
0.28  !=  28  |  2.8\%
150\%  ==  1.5  |  3/2
28  ==  28\%  |  28%
""",
    "units and magnitudes": r"""
60  ==  60 mph  |  60 miles per hour  |  60\text{ km/h}  |  60\ \text{km/h}  |  60\,\mathrm{km}
60  ==  60 m/s  |  60\text{ m/s}  |  60\text{ m}  |  60 minutes  |  60\text{ cm}^2
60  ==  60 \text{ square feet}  |  60 sq ft  |  60 cubic meters  |  60\mathrm{m}^{2}  |  60 kg
60  ==  60kg  |  60cm  |  60 years old  |  60 apples  |  60 red apples  |  60個  |  60 คน
60  ==  60명  |  60 pounds  |  60 students  |  60\text{ units}^3  |  60 units  |  60^\circ  |  60°
60  ==  60 degrees  |  60^{\circ}\text{C}  |  60 times  |  60\text{ kg}\cdot\text{m}
60  !=  60 hundred  |  60 thousand  |  60 million  |  60 squared  |  60 cubed  |  60 x  |  60xy
60  !=  60 xy  |  60 pi  |  60\pi  |  60 factorial  |  60 plus 1  |  60 theta  |  60 times y
60  !=  60 minus  |  60 or 61  |  60 halves  |  60 dozen  |  60 percent of x  |  60k^2
60  !=  60 alpha  |  60 sqrt 2  |  60 over 2  |  60!  |  60i  |  60e  |  60 divided by 2
60  !=  60 and a half  |  60 point 5  |  half of 60  |  not 60  |  60 billion  |  60万  |  60 ล้าน
60  !=  60천  |  60 lakh  |  60x^2
3000000  ==  3 million  |  3\text{ million}  |  3 million dollars  |  3,000,000  |  \$3 million
3000000  ==  3 juta  |  3 ล้าน  |  300万  |  3\times 10^6  |  3e6  |  3 mn
3 million  ==  3000000  |  3 million  |  3{,}000{,}000
2500000  ==  2.5 million
36  ==  3 dozen
500  ==  5 hundred
5000  ==  5 thousand  |  5 ribu  |  5พัน  |  5千
7 thousandths  ==  0.007
5 million  !=  5  |  5 billion  |  500000
3 xy  !=  3  |  3x  |  3 xyz
3 xy  ==  3xy  |  3yx  |  3x y
5 apples  ==  5  |  5 apples  |  5 apple
5 apples  !=  5 oranges  |  6 apples
5\text{ cm}  ==  5  |  5 cm  |  5 centimeters  |  5\,\mathrm{cm}
5\text{ cm}  !=  5\text{ m}  |  5 m  |  5 km  |  6 cm
12\text{ cm}^2  ==  12 cm²  |  12  |  12 cm^2
2\pi\text{ cm}  ==  2\pi  |  2π cm
2\pi  !=  2
90^\circ  ==  90  |  90°  |  90 degrees  |  \frac{\pi}{2}
90  !=  90x
""",
    "other bases": r"""
2516_8  ==  2516_8  |  2516_{8}  |  1358
2516_8  !=  2516_9  |  2516
255  ==  11111111_2  |  377_8
129_8  !=  129_8
""",
    "mixed numbers": r"""
7/2  ==  3\frac{1}{2}  |  3\frac12  |  3 \frac{1}{2}  |  3½  |  3 1/2  |  3.5  |  \frac{7}{2}
7/2  ==  3\tfrac{1}{2}  |  3\dfrac12  |  \frac72  |  7/2  |  3\frac{1}{2}\text{ hours}
7/2  ==  3 1/2 hours  |  3.50
7/2  !=  3\cdot\frac{1}{2}  |  3/2  |  1/2  |  3  |  31/2  |  2 1/2  |  -3\frac12  |  3 + 1/3
7/2  !=  3 1/3  |  2
-7/2  ==  -3\frac{1}{2}  |  -3 1/2  |  -3.5  |  −3½
-7/2  !=  -2.5  |  3 1/2  |  -5/2
3 1/2  ==  3.5  |  7/2  |  3\frac{1}{2}  |  3 1/2
3 1/2  !=  2  |  3/2  |  3  |  1/2
3\frac{1}{2}  ==  3.5
2  !=  3 1/2
-3\frac{1}{2}  ==  -3.5
1\frac{1}{3}  ==  4/3
12/5 8  !=  8  |  12/58
8  !=  12/5 8
""",
    "recurring decimals": r"""
4/3  ==  1.\overline{3}  |  1.\dot{3}  |  1.\dot3  |  1.\bar{3}  |  1.\overline3  |  1.(3)
4/3  ==  1.333...  |  1.3333\ldots  |  1.\overline{33}  |  1.33\overline{3}  |  1.3̇  |  1.3̅
4/3  !=  1.3  |  1.33  |  1.3333  |  1.33333333  |  1.\overline{4}  |  1.3...  |  1.33...
4/3  !=  1.\overline{32}
1/6  ==  0.1\overline{6}  |  0.1\dot{6}  |  .1\overline{6}  |  0.1666...
1/7  ==  0.\overline{142857}  |  0.\dot{1}4285\dot{7}  |  0.142857142857...
0.\overline{9}  ==  1
1  ==  0.\overline{9}  |  0.999...
1  !=  0.999  |  0.9999999
0.3  !=  0.3...  |  0.\overline{3}  |  0.33
0.\overline{3}  ==  1/3  |  \frac13
3.14159  !=  3.14159...  |  \pi
1/3  !=  0.333  |  0.33  |  0.3333333333  |  33\%  |  0.33...
5/11  ==  0.\overline{45}  |  0.4545...  |  0.\dot4\dot5
""",
    "roots and functions": r"""
\frac{\sqrt{2}}{2}  ==  1/\sqrt{2}  |  \sqrt{2}/2  |  \sqrt{\frac12}  |  \frac{1}{\sqrt{2}}
\frac{\sqrt{2}}{2}  ==  2^{-1/2}  |  sqrt(2)/2  |  \sqrt{0.5}
\frac{\sqrt{2}}{2}  !=  0.7071  |  \sqrt{2}  |  0.70710678118
\sqrt[3]{2}  ==  2^{1/3}  |  \sqrt[3]2  |  2^{\frac{1}{3}}
\frac{\pi}{2}  ==  pi/2  |  π/2  |  \frac12\pi  |  0.5\pi  |  \pi/2  |  90^\circ
\frac{\pi}{2}  !=  1.57  |  1.5708  |  \pi  |  2\pi  |  3.14/2
\sin x  ==  sin x  |  sin(x)  |  \sin(x)  |  \sin{x}  |  \sin\left(x\right)
\sin x  !=  \cos x  |  sin y  |  \sin 2x  |  x \sin  |  \sin^2 x
\sin^2 x  ==  (\sin x)^2  |  1-\cos^2 x  |  \sin^2(x)
\log 2  ==  log(2)  |  log 2  |  \log(2)  |  \log_{10} 2  |  lg 2
\ln 2  ==  ln 2  |  ln(2)  |  \log_e 2  |  \ln(2)
3  ==  \log_2 8  |  \log_{2}{8}  |  log_2(8)  |  |-3|  |  \left|-3\right|  |  \lfloor 3.7 \rfloor
3  ==  \lceil 2.1\rceil  |  \max(1,3)  |  \gcd(6,9)
exp(2)  ==  e^2  |  e^{2}  |  \exp(2)
x**2  ==  x^2  |  x^{2}
sqrt(2)  ==  √2  |  \sqrt 2  |  2^{0.5}  |  2**0.5  |  2^(1/2)
2*sqrt(3)  ==  2\sqrt{3}  |  \sqrt{12}
\arctan 1  ==  \frac{\pi}{4}  |  \tan^{-1} 1  |  \pi/4
\frac{1}{2}  ==  \sin 30^\circ  |  \cos 60°  |  1/2  |  0.5  |  \frac{1}{2}  |  \frac 1 2
\frac{1}{2}  ==  \frac12  |  .5  |  5/10  |  2^{-1}  |  \dfrac{1}{2}
\frac{1}{2}  !=  2  |  \frac{2}{1}  |  1  |  \frac13  |  12
5!  ==  120
120  ==  5!
5  !=  5!
\binom{5}{2}  ==  10
""",
    "small and large numbers": r"""
1500  ==  1.5e3  |  1.5E3  |  1.5\times10^3  |  1.5 \cdot 10^{3}  |  1.5*10^3  |  1.5e+3  |  15e2
1500  ==  1.5 \times 10^3  |  1.5×10³
0.00001  ==  1e-5  |  1e-05  |  10^{-5}  |  0.00001  |  1\times10^{-5}
1e-05  ==  0.00001
0.00001  !=  0  |  0.0  |  0.000011  |  1e-6  |  0.0000104
6.02e23  ==  6.02\times 10^{23}  |  6.02 × 10²³
6.02e23  !=  6.02\times10^{22}  |  6.02  |  6.02e24
1e-7  !=  0  |  1e-8  |  e-7  |  -7
10^{-8}  !=  0  |  10^{-9}  |  1
1/2004!  !=  1/2005!  |  0
1/2004!  ==  \frac{1}{2004!}  |  \frac{1}{2004\cdot 2003!}
e^{-40}  !=  e^{-41}  |  0
2^{-60}  !=  2^{-61}  |  0
10^{100}  !=  10^{101}  |  10^{100}+1
10^{100}  ==  10^{100}  |  1e100
7^{2023}  ==  7^{2023}  |  7\cdot7^{2022}
7^{2023}  !=  7^{2022}  |  7^{2023}+1
2^{100000000}  ==  2^{100000000}
2^{100000000}  !=  2^{100000001}  |  0
10^{10^{10}}  ==  10^{10^{10}}
9^9^9^9  !=  8^8^8^8
0.1  !=  0.10000001  |  0.1000000000001
0.1  ==  0.10  |  1/10
0  ==  -0.0  |  0.0  |  -0  |  0\%  |  0 apples
0  !=  10^{-100}  |  e^{-100}  |  1e-300  |  0.0000001
""",
    "several forms of one value": r"""
1/2  ==  \frac{1}{2} = 0.5  |  0.5 = \frac12  |  \frac{1}{2}=50\%
42  ==  6\times7=42  |  x = 6\times 7 = 42  |  42 = 6 \times 7
42  !=  6\times7=41  |  6\times 7 = 42 = 43  |  41=42
4\pi  ==  4\pi \approx 12.57  |  A = 4\pi \approx 12.566
4\pi  !=  12.57  |  4\pi = 12.57  |  4\pi \approx 13
12.57  ==  4\pi\approx 12.57
5  !=  5 \approx 6  |  5\text{ or }6  |  4,5,6  |  5, 5, 6
5  ==  5
""",
    "algebra": r"""
2+3i  ==  3i+2  |  2+3i  |  2 + 3 i
2+3i  !=  2-3i  |  2  |  3i  |  2+3j  |  3+2i  |  5i
i  ==  \sqrt{-1}  |  i
i  !=  1  |  -i  |  -1
x^2-1  ==  (x-1)(x+1)  |  (x+1)(x-1)  |  -(1-x^2)  |  x\cdot x-1
x^2-1  !=  x^2+1  |  (x-1)^2  |  x-1  |  X^2-1
(x+1)^2  ==  x^2+2x+1
x  !=  y  |  X  |  2x  |  -x  |  x^2  |  x+0.0001
2x  ==  2 x  |  2\cdot x  |  x+x  |  2*x  |  x \cdot 2  |  \frac{4x}{2}
\tan x  ==  \frac{\sin x}{\cos x}  |  \sin x/\cos x
\frac{1}{x+1}  ==  (x+1)^{-1}  |  1/(x+1)
\frac{1}{x+1}  !=  1/x+1  |  \frac{1}{x-1}
e^{x}  ==  e^x  |  \exp(x)  |  \mathrm{e}^x
e^x  !=  e^{-x}  |  x^e
|x|  ==  \sqrt{x^2}  |  \left|x\right|  |  |-x|
|x|  !=  x  |  -x
\frac{a}{b}  ==  a/b  |  \frac{2a}{2b}  |  ab^{-1}
\frac{a}{b}  !=  \frac{b}{a}  |  \frac{A}{B}  |  ab  |  1
\frac{R}{r}  !=  \frac{r}{R}  |  1  |  \frac{r}{r}
R-r  !=  0  |  r-R
R-r  ==  -r+R  |  R - r
V_1  !=  v_1  |  V_2  |  V
V_1  ==  V_{1}  |  V₁
S  !=  s
M m g  !=  m^2 g  |  mg
M m g  ==  Mmg  |  gMm
\sqrt{Rr}  !=  r  |  R  |  \sqrt{rr}
x_1+x_2  ==  x_2+x_1
1-\frac{1}{\mathrm{e}}  !=  1  |  1-\frac{1}{x}  |  0.632
1-\frac{1}{\mathrm{e}}  ==  1-\frac1e  |  1-e^{-1}  |  \frac{e-1}{e}
\frac{n(n+1)}{2}  ==  \binom{n+1}{2}  |  \frac{n^2+n}{2}  |  n(n+1)/2  |  \sum_{k=1}^{n} k
\frac{n(n+1)}{2}  !=  \frac{n(n-1)}{2}  |  n(n+1)
2^n  ==  2\cdot 2^{n-1}  |  2^{n}
2^n  !=  2^{n-1}  |  n^2
\sum_{k=1}^{n} k  ==  \frac{n(n+1)}{2}
\int_0^1 x dx  ==  1/2
n!  ==  n!
(n+1)!  ==  (n+1)n!
n!  !=  n  |  (n-1)!
-x  ==  -x  |  (-1)x
-\frac{1}{2}  ==  \frac{-1}{2}  |  \frac{1}{-2}  |  -0.5  |  -1/2
a^2b  ==  ba^2  |  a^2 b
a^2b  !=  ab^2  |  a^2B
""",
    "thousands inside a formula": r"""
1200\pi  ==  1,200\pi  |  1{,}200\pi  |  1200π  |  1.2\times10^3\pi
1200\pi  !=  1200  |  200\pi  |  1,20\pi  |  1.2\pi
200\pi  !=  1,200\pi
1,500\sqrt{2}  ==  1500\sqrt2
500\sqrt{2}  !=  1,500\sqrt{2}
1/1,000  ==  0.001  |  10^{-3}
\frac{1}{1,000}  ==  0.001
0  !=  1,000
\$1,200  ==  1,200
x=1,200  ==  1200
x=1,200  !=  200  |  1
1000x  ==  1,000x
x  !=  1,000x
1200  ==  \approx 1,200  |  ≈1200  |  \$1,200  |  1,200 dollars  |  \text{1,200}  |  x = 1,200
1200  ==  1,200.00  |  1,200\text{ m}
500  !=  12'500  |  12’500
12500  ==  12'500  |  12’500
""",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_boxed_answer_is_right_exactly_when_it_equals_the_reference(kind: str) -> None:
    assert not mistakes(KINDS[kind])
