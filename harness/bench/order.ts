// SPDX-License-Identifier: MIT
// The order in which variants are run.

/** One round: each once; every second round backwards. For two variants A B B A A B B A …: a machine that drifts treats them alike. */
export const roundOf = <T>(variants: readonly T[], round: number): T[] =>
  round % 2 === 0 ? [...variants] : [...variants].reverse();

export function alternate<T>(variants: readonly T[], rounds: number): T[] {
  return Array.from({ length: rounds }, (_, round) => roundOf(variants, round)).flat();
}

const SIXFOLD = ['012', '120', '201', '210', '102', '021'] as const;
/** Rounds after which balancedRound() has treated all alike. */
export const BALANCED = SIXFOLD.length;

/**
 * One round of three variants that live side by side. In six rounds each is twice at each place, and three times right after
 * each of the others, never after itself: what the one before has left in caches, or on the GPU, is the same for all.
 */
export function balancedRound<T>(variants: readonly T[], round: number): T[] {
  if (variants.length !== 3) throw new RangeError('this order is for three variants');
  return [...(SIXFOLD[round % BALANCED] as string)].map((at) => variants[Number(at)] as T);
}
