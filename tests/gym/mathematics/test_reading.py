"""Choices, words, tuples, sets, intervals, equations; `boxed_answers` reads the tables."""

from __future__ import annotations

import pytest

from tests.gym.mathematics.boxed_answers import mistakes

KINDS = {
    "commas in pairs": r"""
(5,120)  ==  (5,120)  |  \left(5, 120\right)  |  (5 , 120)  |  \left( 5,\, 120 \right)
(5,120)  ==  (5;120)
(5,120)  !=  (120,5)  |  (5,12)  |  5120  |  (5120)  |  5,121  |  (5,120,0)  |  [5,120]
(5,120)  !=  \{5,120\}
\{5,120\}  ==  \{5,120\}  |  5, 120  |  120, 5
(1,2)  !=  \{1,2\}  |  \{2,1\}  |  (2,1)  |  2,1  |  1  |  2  |  3  |  12
(1,2)  ==  (1.0,2.0)  |  1,2  |  (1,\ 2)  |  (\frac{2}{2}, 2)
\{1,2\}  !=  (1,2)  |  (2,1)  |  \{1,2,3\}  |  \{1\}
[1,2]  !=  (1,2)  |  (1,2]  |  \{1,2\}
(1,234,5)  ==  (1,234,5)
(1,234)  !=  1234  |  1,234
""",
    "times, dates and ratios": r"""
3:45  ==  3:45
3:45 PM  ==  3:45 pm  |  3:45 p.m.  |  3:45\,\text{PM}  |  3:45PM
3:45  !=  3:46  |  4:45  |  3.45  |  345  |  15:45  |  1:15
3:45 PM  !=  3:45 AM  |  4:45 PM
12:00  !=  0:00  |  6:00  |  12  |  24:00
July 4  ==  July 4  |  july 4  |  \text{July 4}
July 4  !=  July 5  |  June 4  |  4  |  July
2021-03-04  ==  2021-03-04
2021-03-04  !=  2014  |  2021-03-05  |  2021-04-03
4 July  !=  4  |  4 June
4 July  ==  4 July
1:2  ==  1:2  |  2:4  |  \frac12  |  1 : 2
1:2  !=  2:1  |  1:3
\text{Monday}  ==  Monday  |  monday
Monday  !=  Tuesday
3/4/2020  !=  4/3/2020
3:2:1  ==  6:4:2
3:2:1  !=  1:2:3
""",
    "choice letters": r"""
B  ==  B  |  (B)  |  B)  |  B.  |  \text{B}  |  \textbf{B}  |  \textbf{(B)}  |  \text{(B)}
B  ==  (B) 12  |  B. 12  |  B: twelve  |  \mathrm{B}  |  \text{Option B}  |  Option B
B  !=  A  |  C  |  (C)  |  A) B  |  D  |  BC  |  12  |  AB  |  E) 12
(B)  ==  B  |  (B)
AC  ==  A, C  |  A and C  |  A,C  |  CA
AC  !=  A  |  C  |  AB  |  ABC  |  AD
12  !=  B) 12  |  (B) 12  |  B. 12
D  !=  \text{B}
""",
    "intervals and sets": r"""
[0,1)  ==  [0,1)  |  0\le x<1  |  x\in[0,1)  |  0 <= x < 1  |  1 > x \ge 0  |  \left[0,1\right)
[0,1)  ==  x\ge 0\text{ and }x<1
[0,1)  !=  (0,1)  |  [0,1]  |  0<x<1  |  0\le x\le 1  |  [0,1  |  0,1  |  [0,2)  |  (0,1]
(-\infty,3]  ==  x\le 3  |  3 \ge x  |  \{x: x\le 3\}  |  \{x | x \le 3\}  |  \{x \mid x \leq 3\}
(-\infty,3]  ==  (-\infty, 3]  |  x\in(-\infty,3]  |  (−∞, 3]
(-\infty,3]  !=  (-\infty,3)  |  x<3  |  x\ge 3  |  x \le 4  |  3  |  (3,\infty)  |  [-\infty,4]
(-\infty,-1)\cup(1,\infty)  ==  (1,\infty)\cup(-\infty,-1)  |  x<-1\text{ or }x>1  |  x<-1 or x>1
(-\infty,-1)\cup(1,\infty)  ==  (-\infty,-1)∪(1,∞)
(-\infty,-1)\cup(1,\infty)  !=  (-1,1)  |  x<-1  |  x<-1\text{ and }x>1
(-\infty,-1)\cup(1,\infty)  !=  (-\infty,1)\cup(1,\infty)
\emptyset  ==  ∅  |  \varnothing  |  \{\}  |  \{ \}
\emptyset  !=  0  |  \{0\}  |  1
x=1 or x=2  ==  1,2  |  x=1,x=2  |  x=2\text{ or }x=1  |  \{1,2\}  |  x \in \{1, 2\}  |  1 or 2
x=1 or x=2  ==  1 and 2  |  x = 1, 2
x=1 or x=2  !=  1  |  x=1  |  1,3  |  x=1,x=3  |  1,2,3
1,2  ==  x=1\text{ or }x=2  |  x=1 \text{ and } x=2  |  \{2,1\}
(1,2),(3,4)  ==  (1,2), (3,4)  |  (3,4),(1,2)  |  (1,2)\text{ and }(3,4)  |  \{(1,2),(3,4)\}
(1,2),(3,4)  !=  (2,1),(4,3)  |  (1,2)  |  (1,2,3,4)  |  1,2,3,4
x \neq 2  ==  (-\infty,2)\cup(2,\infty)  |  x≠2
[2,\infty)  ==  x \ge 2  |  2\le x  |  [2,+\infty)  |  2 \leq x < \infty
x>2  !=  x>3  |  x\ge 2  |  x<2  |  2  |  (3,\infty)  |  y>2
x>2  ==  2<x  |  (2,\infty)  |  x > 2
(0,1)  ==  0<x<1  |  (0, 1)
(0,1)  !=  0\le x<1  |  (1,0)  |  [0,1]
[0,1]  ==  0\le x\le 1  |  [0, 1]
""",
    "matrices": r"""
\begin{pmatrix}1&2\\3&4\end{pmatrix}  ==  \begin{bmatrix}1 & 2 \\ 3 & 4\end{bmatrix}
\begin{pmatrix}1&2\\3&4\end{pmatrix}  ==  \begin{pmatrix} 1 & 2 \\ 3 & 4 \\ \end{pmatrix}
\begin{pmatrix}1&2\\3&4\end{pmatrix}  ==  \left(\begin{array}{cc}1&2\\3&4\end{array}\right)
\begin{pmatrix}1&2\\3&4\end{pmatrix}  ==  \begin{matrix}1&2\\3&4\end{matrix}
\begin{pmatrix}1&2\\3&4\end{pmatrix}  !=  \begin{pmatrix}1&3\\2&4\end{pmatrix}
\begin{pmatrix}1&2\\3&4\end{pmatrix}  !=  \begin{pmatrix}1&2\\3&5\end{pmatrix}  |  (1,2,3,4)
\begin{pmatrix}1&2\\3&4\end{pmatrix}  !=  \begin{pmatrix}1&2&3&4\end{pmatrix}  |  1,2,3,4
\begin{pmatrix}1&2\\3&4\end{pmatrix}  !=  \begin{vmatrix}1&2\\3&4\end{vmatrix}
\begin{pmatrix}1\\2\end{pmatrix}  ==  (1,2)  |  \begin{bmatrix}1\\2\end{bmatrix}
\begin{pmatrix}1\\2\end{pmatrix}  ==  \langle 1,2\rangle  |  \begin{pmatrix}1.0\\2\end{pmatrix}
\begin{pmatrix}1\\2\end{pmatrix}  ==  \begin{pmatrix} 1 \\[2pt] 2 \end{pmatrix}
\begin{pmatrix}1\\2\end{pmatrix}  !=  (2,1)  |  \begin{pmatrix}2\\1\end{pmatrix}  |  \{1,2\}
\langle 1,2\rangle  ==  (1,2)
""",
    "markup": r"""
5  ==  5  |  {5}  |  {{5}}  |   5   |  \text{5}  |  \mathbf{5}  |  \boldsymbol{5}  |  \bm{5}
5  ==  \mathrm{5}  |  \textbf{5}  |  **5**  |  $5$  |  \(5\)  |  \[5\]  |  \displaystyle 5
5  ==  \color{red}5  |  \color{red}{5}  |  \textcolor{blue}{5}  |  \underline{5}  |  \boxed{5}
5  ==  5.  |  5,  |  5;  |  5.0  |  +5  |  "5"  |  '5'  |  `5`  |  \,5\,  |  \ 5
5  ==  \left(5\right)  |  (5)  |  \{5\}  |  5 \checkmark  |  \fbox{5}  |  x=5  |  x = 5  |  n=5
5  ==  \text{Answer: }5  |  Answer: 5  |  \text{Area} = 5  |  f(2)=5  |  AB=5  |  \angle ABC = 5
5  ==  P(A)=5  |  5\quad  |  \phantom{x}5  |  \overline{AB}=5  |  |AB|=5  |  \approx 5
5  !=  <nothing>  |  \   |  ?  |  ??  |  \text{five hundred}  |  5 6  |  5/  |  /5  |  5+  |  5=
5  !=  =5=  |  (5  |  5)  |  5 5  |  55  |  5 \times  |  \frac{5}{}  |  5^  |  ^5  |  \sqrt{5}
5  !=  x  |  5x  |  \text{not }5  |  \ne 5  |  \neq 5  |  ≠5  |  \not=5  |  >5  |  \ge 5  |  <5
5  !=  \le 5  |  x>5  |  x<5  |  x\ge5  |  5<x  |  5 < 8  |  4<5  |  5 \to 6  |  5 | 10  |  5, 6
5  !=  5 or 6  |  5 and 6  |  \{5,6\}  |  (5,6)  |  [5,6]  |  5\pm1  |  \pm 5  |  5:6
5  !=  x=5, y=6  |  x=5 or x=6  |  1,2,3,4,5  |  5\text{ or more}  |  at least 5  |  less than 5
5  !=  5 - 5c  |  ~5  |  -5  |  5i  |  5\infty  |  5 = 6  |  6 = 5  |  4+2=5
5  !=  \begin{cases}5\\6\end{cases}
""",
    "equations and inequalities": r"""
2x+4y-6=0  ==  x+2y=3  |  x=3-2y  |  2x+4y=6  |  -x-2y+3=0  |  y=\frac{3-x}{2}
2x+4y-6=0  !=  x+2y=4  |  x+2y  |  2x+4y-6  |  x+2y<3
y=2x+1  ==  y=1+2x  |  2x+1  |  y-2x=1  |  2x-y+1=0  |  y=2(x+\frac12)  |  y = 2x + 1
y=2x+1  !=  y=2x-1  |  y=2x  |  x=2y+1  |  2x  |  z=2x+1
x=3  ==  3  |  x=3  |  3=x  |  x = 3.0
x=3  !=  x=-3  |  y=3  |  -3  |  x>3  |  x=3,4
x^2+1=0  !=  x^2+4=0  |  x^2+2=0  |  x^2-1=0
x^2+1=0  ==  x^2=-1  |  -x^2=1  |  2x^2+2=0
x^2+y^2=1  ==  y^2+x^2=1  |  x^2+y^2-1=0
x^2+y^2=1  !=  x^2+y^2=-1  |  x^2+y^2=2  |  x^2-y^2=1
a<b<c  ==  c>b>a  |  a<b<c
a<b<c  !=  a<c<b  |  c<b<a  |  a<b  |  a\le b<c
x+y<2  ==  2>x+y  |  2x+2y<4
x+y<2  !=  x+y>2  |  x+y\le2  |  -x-y<-2
a=1,b=2  ==  b=2,a=1  |  a=1, b=2  |  a=1\text{ and }b=2  |  (1,2)
a=1,b=2  !=  a=2,b=1  |  (2,1)  |  a=1  |  2,1
x=1,y=2  ==  (1,2)  |  (x,y)=(1,2)
(1,2)  ==  (x,y)=(1,2)  |  x=1,y=2  |  y=2,x=1
(1,2)  !=  x=2,y=1  |  (x,y)=(2,1)
\frac{x^2}{4}+\frac{y^2}{9}=1  ==  9x^2+4y^2=36
y=x^2  !=  y=x^2+1  |  x=y^2  |  y=x^3
y=x^2  ==  x^2=y  |  y-x^2=0
""",
    "words": r"""
even  ==  even  |  Even  |  \text{even}  |  \textbf{even}  |  \text{ Even }  |  EVEN
\text{even}  ==  even
even  !=  odd  |  eve  |  vene  |  not even  |  \text{odd}
no solution  ==  \text{no solution}  |  No solution  |  No solution.  |  \text{No Solution}
no solution  !=  \text{no real solution}  |  solution  |  one solution  |  0  |  1
No  ==  no  |  NO  |  \text{No}
No  !=  yes  |  on  |  None  |  not  |  maybe
True  ==  \text{True}  |  true
True  !=  False
Evelyn  ==  \text{Evelyn}  |  evelyn
listen  !=  silent  |  \text{silent}  |  tinsel
dog  !=  god  |  \text{god}
left  !=  felt
act  !=  cat
undefined  ==  Undefined  |  \text{undefined}
DNE  ==  \text{DNE}
hyperbola  ==  \text{Hyperbola}
abc  ==  abc  |  a b c  |  a\cdot b\cdot c
xyz  ==  zyx  |  x y z  |  xzy
mn  ==  nm
xyz  !=  xy  |  wxyz  |  xyZ
I and II  ==  \text{I and II}  |  I and II
I and II  !=  I  |  II and III  |  I and III
II  !=  III  |  I  |  11  |  2
II  ==  \text{II}  |  II
odd  ==  \mathrm{odd}
5 red  !=  5 blue  |  6 red  |  red
isosceles triangle  ==  \text{isosceles triangle}  |  Isosceles Triangle
Tuesday  ==  \text{Tuesday}
x + 1  ==  x+1  |  1+x
pi  ==  \pi  |  π
theta  ==  \theta  |  θ
alpha  ==  \alpha  |  α
infinity  ==  \infty  |  ∞
""",
    "symbols, lists and both signs": r"""
6 \pmod{7}  ==  6  |  6 \pmod 7  |  6 \mod 7  |  13 \pmod 7
x \equiv 6 \pmod{7}  ==  x \equiv 6 \pmod 7  |  6 \pmod 7  |  x\equiv 6 \pmod{7}  |  x≡6 (mod 7)
x \equiv 6 \pmod{7}  !=  x \equiv 5 \pmod 7  |  x \equiv 6 \pmod 8  |  7
6 \pmod 7  !=  5 \pmod 7  |  7  |  6 \pmod 8
\lfloor x \rfloor  !=  \lceil x\rceil  |  x  |  |x|
\lfloor x \rfloor  ==  \left\lfloor x\right\rfloor  |  ⌊x⌋
\triangle ABC  ==  \triangle ABC  |  △ABC
\triangle ABC  !=  \triangle ACB  |  ABC  |  \angle ABC
\log 100  ==  2
45^\circ  ==  45°  |  45  |  45 degrees  |  \frac{\pi}{4}
45^\circ  !=  46°  |  \frac{\pi}{3}  |  45\pi
\infty  ==  ∞  |  +\infty  |  infinity  |  \text{infinity}
\mathrm{e}  ==  e  |  \text{e}
e  !=  2.718  |  2.71828  |  E
x ≥ 3  ==  x \ge 3  |  x\geq3  |  [3,\infty)  |  x >= 3
5€  ==  5  |  €5  |  5 euros
2π/3  ==  \frac{2\pi}{3}  |  \frac{2}{3}\pi  |  120°
\{2,3\}  ==  x=2,x=3  |  2,3  |  3, 2  |  \{3,2\}  |  x\in\{2,3\}
1 \pm \sqrt{2}  ==  1+\sqrt2, 1-\sqrt2  |  1-\sqrt{2}\text{ and }1+\sqrt{2}  |  1±√2
1 \pm \sqrt{2}  ==  x = 1 \pm \sqrt{2}
1 \pm \sqrt{2}  !=  1+\sqrt{2}  |  1-\sqrt2  |  \pm\sqrt{2}
\pm 3  ==  3,-3  |  -3, 3  |  x=\pm3  |  \{-3,3\}  |  ±3
\pm 3  !=  3  |  -3
1,2,2  !=  2,1,1  |  1,2  |  1,1,2  |  2,1
1,2,2  ==  2,1,2  |  1,2,2  |  2,2,1
1,1,1  !=  1  |  1,1  |  1,1,1,1
1,2,3  !=  1,2  |  3  |  6  |  1,2,4
1,2,3  ==  3,2,1  |  1, 2 and 3  |  1, 2, and 3  |  \{1,2,3\}
(3,2,1)  !=  1,2,3  |  (1,2,3)
(1,2,3)  ==  1,2,3  |  (1,2,3)
""",
    "mixed kinds": r"""
\{1\pm\sqrt{5},-2\}  ==  1+\sqrt5, 1-\sqrt5, -2  |  \{-2, 1\pm\sqrt{5}\}
\{1\pm\sqrt{5},-2\}  !=  1\pm\sqrt{5}  |  1+\sqrt5, -2
(\pm 1, 2)  ==  (1,2),(-1,2)
(\pm 1, 2)  !=  (1,2)  |  \pm 1, 2
10000  ==  10_000
5  ==  5\,\frac{\text{m}}{\text{s}}  |  5\text{ m/s}^2  |  5 \frac{\text{km}}{\text{h}}
5  ==  about 5  |  approximately 5  |  exactly 5  |  \begin{aligned}5\end{aligned}  |  *5*
5  ==  \large 5  |  5\text{ m}^3  |  5 m/s^2  |  5 dollars per hour  |  5\text{ miles}
5  ==  \text{5 cm}  |  5 cm^3  |  5.00  |  \mathbf{5}\text{ cm}  |  |3+4i|
B  ==  B)12  |  (B) \frac{1}{2}  |  \textbf{(B) }12  |  \text{(B) }12  |  \textbf{(B)}\ 12
B  ==  B) -5  |  \text{B}.  |  (B).  |  **B**  |  B
A  !=  (A) + 1  |  A + 1  |  (A)^2  |  2A  |  A/B  |  (A) - 1  |  A!  |  A,B
AB  ==  A\cdot B  |  BA
AB  !=  ab  |  A+B  |  A
(-\infty,\infty)  ==  \mathbb{R}  |  x\in\mathbb{R}  |  ℝ
\mathbb{R}  ==  (-\infty,\infty)  |  \mathbb{R}
\mathbb{R}  !=  R  |  \mathbb{Z}  |  \emptyset
\frac{dy}{dx}  !=  \frac{y}{x}
\{2,3\}  ==  {2,3}  |  {3,2}
(1,2)  !=  {1,2}  |  {2,1}
(1,2,3)  !=  {1,2,3}
yes  ==  Yes!  |  \text{Yes.}  |  yes;
5  !=  5 \ldots  |  5, \ldots  |  5\text{ or }\text{so or }6  |  5 \cup 6  |  5_2  |  5'
5  !=  5^\prime  |  5|  |  |5  |  5 \mid 10  |  5 \perp  |  \overline{5}  |  5 : 1  |  \frac{5}
5  !=  \frac5  |  sin 5  |  5 \sin  |  log  |  5 ln  |  5 !!  |  5 ° 3  |  5.5.5  |  5,,6
5  !=  5..6  |  5-  |  5\cdot  |  (5))  |  [5  |  5]  |  \{5  |  5\}  |  <5>  |  \langle 5
5  !=  5 \neq 6  |  5 = x = 6  |  \text{five}5  |  5\text{five}  |  5 five  |  5 two  |  1 5
5  !=  5 1/0  |  5/0  |  0/5  |  5^{5  |  5\\6  |  5&6  |  #5#6  |  5@6  |  5~6  |  5 6/7 8
5  !=  5 and  |  and 5  |  or 5  |  5 x 1  |  5×  |  ÷5  |  5+-  |  5\pm  |  \mp5  |  x5  |  a5
5  !=  5a  |  5 a  |  5b c
0.000001  ==  1e-6  |  10^{-6}  |  1\times10^{-6}  |  \frac{1}{1000000}  |  0.0001\%
0.000001  !=  0.000002  |  0  |  10^{-7}
\sqrt{2}-1  ==  \frac{1}{\sqrt{2}+1}  |  \tan\frac{\pi}{8}  |  -1+\sqrt2
\sqrt{2}-1  !=  0.41421356237309515  |  \sqrt2+1  |  1-\sqrt2
\cos\frac{\pi}{5}  ==  \frac{1+\sqrt5}{4}
\frac{3+\sqrt{5}}{2}  ==  (\frac{1+\sqrt5}{2})^2
\ln 2+\ln 3  ==  \ln 6
\log_3 9  ==  2
\frac{1}{\log_2 3}  ==  \log_3 2
2^{10}  ==  1024
\sqrt[4]{16}  ==  2
\sqrt[3]{-8}  ==  -2
\frac{x^2-1}{x-1}  ==  x+1
a(b+c)  ==  ab+ac
\sin(2x)  ==  2\sin x\cos x
x^3-x  ==  x(x-1)(x+1)
x^3-x  !=  x(x^2+1)
\frac{1}{1-x}  ==  -\frac{1}{x-1}  |  (1-x)^{-1}
n^2+n  ==  n(n+1)
\frac{2x+3}{5}  ==  0.4x+0.6
3x-2y=6  ==  y=\frac{3}{2}x-3  |  6=3x-2y  |  1.5x - y = 3
x\ge -2  ==  [-2,\infty)  |  -2\le x
-1<x<1  ==  (-1,1)  |  x\in(-1,1)  |  1>x>-1  |  x>-1 and x<1
x<1\text{ or }x>2  ==  (-\infty,1)\cup(2,\infty)  |  x>2 or x<1
x<1\text{ or }x>2  !=  1<x<2  |  x<1  |  (1,2)
(x,y)=(1,2)  ==  (1,2)  |  x=1,y=2
x=2  ==  2  |  x = 2.0  |  \{2\}  |  x=\frac{4}{2}=2
y=-x+3  ==  x+y=3  |  y=3-x
\frac{1}{3},\frac{2}{3}  ==  \frac23,\frac13  |  1/3 and 2/3
\frac{1}{3},\frac{2}{3}  !=  \frac13  |  \frac13,\frac13  |  0.33,0.67
12:30  ==  12:30  |  \text{12:30}
12:30 PM  ==  12:30 pm  |  12:30 p.m.
12:30  !=  12:31  |  0:30
March 5, 2020  ==  \text{March 5, 2020}  |  march 5, 2020
March 5, 2020  !=  March 6, 2020  |  5
Monday  ==  \textbf{Monday}
10/12/2021  ==  10/12/2021
10/12/2021  !=  12/10/2021
25\%  ==  25%  |  25 percent  |  0.25  |  \frac14  |  25
25\%  !=  2.5  |  0.0025  |  75%
\$1.50  ==  1.50  |  1.5  |  $1.50  |  1.50 dollars
\$1.50  !=  150  |  15
1.5  ==  $1\frac{1}{2}$  |  1 1/2  |  \frac{3}{2}  |  1½  |  1.50
5 1/4  ==  5\frac14  |  21/4  |  5.25
5 1/4  !=  51/4  |  5/4  |  5.14  |  5  |  1/4
i  ==  \sqrt{-1}
1+i  ==  i+1
1+i  !=  1-i  |  1+j
e^{i\pi}  ==  -1
ellipse  ==  Ellipse  |  \mathrm{Ellipse}  |  \textit{ellipse}
ellipse  !=  circle  |  an ellipses
none  ==  None  |  \text{None}
none  !=  no  |  one
DNE  ==  dne  |  \text{DNE}
x  ==  \text{x}  |  x
x  !=  \text{xx}
A  ==  \text{A}  |  (A)
a  !=  A
\text{odd}  ==  odd
increasing  ==  \text{increasing}
123456789  ==  123,456,789  |  123 456 789  |  １２３，４５６，７８９
123456789  ==  123{,}456{,}789  |  123\,456\,789
123456789  !=  123,456,78  |  123,456
-1,234  ==  -1234  |  −1234
1,234.5  ==  1234.5
0.5  ==  ½  |  50%  |  .5  |  1/2  |  0.50
1,000,000  ==  10^6  |  1 million  |  1e6  |  1\,000\,000  |  1\text{ million}  |  1000000
""",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_boxed_answer_is_right_exactly_when_it_equals_the_reference(kind: str) -> None:
    assert not mistakes(KINDS[kind])
