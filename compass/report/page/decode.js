// Reads what compass/report/tokens.py wrote. Nothing here touches the page.

const PLANES = ["low", "high", "logprob", "gap", "entropy", "advantage", "flips", "uncertain"];

/** Codes of one rollout in an inflated block.
 *  `tokens` and `bytes`: how many each rollout of the block has; `place`: which of them. */
function planesOf(block, place, tokens, bytes) {
  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const allTokens = sum(tokens), allBytes = sum(bytes);
  const before = sum(tokens.slice(0, place)), n = tokens[place];
  const start = sum(bytes.slice(0, place));
  const planes = { text: block.subarray(start, start + bytes[place]) };
  PLANES.forEach((name, i) => {
    const from = allBytes + i * allTokens + before;
    planes[name] = block.subarray(from, from + n);
  });
  return planes;
}

/** What a code stands for. */
const valueOf = {
  logprob: (code, codes) => -code / codes.logprobSteps,
  entropy: (code, codes) => (code / 255) ** 2 * codes.maxEntropy,
  advantage: (code, codes) => {
    const root = (code - 128) / 127;
    return Math.sign(root) * root * root * codes.maxAdvantage;
  },
  gap: (code, codes) => {
    const steps = Math.abs(code - 128);
    if (steps === 0) return 0;
    return Math.sign(code - 128) * 10 ** (steps / codes.gapSteps + 1 - codes.gapDecades);
  },
};

/** Text of each token; a character that is cut in two belongs to its last token. */
function piecesOf(planes) {
  const decoder = new TextDecoder();
  const pieces = [];
  let at = 0;
  for (let i = 0; i < planes.low.length; i++) {
    const end = at + planes.low[i] + 256 * planes.high[i];
    pieces.push(decoder.decode(planes.text.subarray(at, end), { stream: i + 1 < planes.low.length }));
    at = end;
  }
  return pieces;
}

/** Bytes of a block from its Base64. */
async function inflate(base64) {
  const packed = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
