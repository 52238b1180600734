/** The calls in lima_guard.ts that make a command, and which of these commands were typed. */

import assert from "node:assert/strict";
import { project } from "../helpers/paths.ts";
import { commandsIn } from "./hints.ts";

/** A copy of lima_guard.ts, twisted as helpers/guard_twisted.ts does it, that notes which call has made a command. */
export class Watched {
  readonly script: string;
  /** The lines of lima_guard.ts in which a command is made. */
  readonly calls = new Map<number, string>();
  /** Every command that was typed, as it was printed. */
  readonly typed = new Set<string>();
  readonly #notes: string;

  constructor(folder: string) {
    const lines = Deno.readTextFileSync(`${project}/lima_guard.ts`).split("\n");
    const begin = lines.findIndex((line) => /^\/\/ ─+ commands to type ─+$/.test(line));
    const end = lines.findIndex((line, at) => at > begin && /^\/\/ ─{9}/.test(line));
    assert.ok(begin > 0 && end > begin, "lima_guard.ts has no chapter of commands");
    const makers = lines.slice(begin, end).flatMap((line) => /^function (\w+)\(/.exec(line)?.[1] ?? []);
    const call = new RegExp(`\\b(${makers.join("|")})\\(`, "g");
    const copy = lines.map((line, at) => {
      if (at >= begin && at < end || /^\s*(\/\/|\*)/.test(line) || line.search(call) < 0) return line;
      this.calls.set(at + 1, line.trim());
      return line.replaceAll(call, `globalThis.noted(${at + 1}, $1)(`);
    });
    this.#notes = `${folder}/made`;
    this.script = `${folder}/watched.ts`;
    const note = `globalThis.noted = (line, make) => (...args) => {
  const made = make(...args);
  Deno.writeTextFileSync(${JSON.stringify(this.#notes)}, JSON.stringify([line, made]) + "\\n", { append: true });
  return made;
};\n`;
    Deno.writeTextFileSync(`${folder}/guard.ts`, `${copy.join("\n")}\n${note}`);
    const twisted = Deno.readTextFileSync(`${project}/tests/helpers/guard_twisted.ts`)
      .replace('"../../lima_guard.ts"', '"./guard.ts"');
    Deno.writeTextFileSync(this.script, twisted);
    Deno.writeTextFileSync(this.#notes, "");
    Deno.chmodSync(this.#notes, 0o666);
  }

  /** The calls none of whose commands has been typed. */
  untyped(): string[] {
    const lines = Deno.readTextFileSync(this.#notes).split("\n").filter((line) => line !== "");
    const made = lines.map((line) => JSON.parse(line) as [number, string]);
    const met = made.filter(([, text]) => commandsIn(text).every((command) => this.typed.has(command)));
    const calls = new Set(met.map(([line]) => line));
    return [...this.calls].filter(([line]) => !calls.has(line)).map(([line, text]) => `${line}: ${text}`);
  }
}
