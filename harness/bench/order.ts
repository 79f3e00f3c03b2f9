// SPDX-License-Identifier: MIT
// The order in which variants are run: ABBA, so that a machine that drifts treats all of them alike.

/** Each variant once a round; every second round backwards. For two variants: A B B A A B B A … */
export function alternate<T>(variants: readonly T[], rounds: number): T[] {
  return Array.from({ length: rounds }, (_, round) =>
    round % 2 === 0 ? [...variants] : [...variants].reverse(),
  ).flat();
}
