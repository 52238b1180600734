/** What the demo prints: headings, explanations, commands with their output, and claims that were checked. */

const WIDTH = 100;

export class Screen {
  /** Set while the program undoes what it did after Ctrl-C: nothing that happens now is shown. */
  silent = false;
  claims = 0;
  broken = 0;
  #printed = "\n";
  readonly #colours = Deno.stdout.isTerminal() && Deno.env.get("NO_COLOR") === undefined;

  heading(text: string): void {
    this.#print(`${this.#blankLine()}${this.#bold(`== ${text} ==`)}\n\n`);
  }

  /** An explanation, wrapped. */
  say(text: string): void {
    const lines = [""];
    for (const word of text.split(/\s+/)) {
      const last = lines.at(-1)!;
      if (last === "") lines[lines.length - 1] = word;
      else if (last.length + 1 + word.length <= WIDTH) lines[lines.length - 1] = `${last} ${word}`;
      else lines.push(word);
    }
    this.#print(`${this.#blankLine()}${lines.join("\n")}\n\n`);
  }

  command(line: string): void {
    this.#print(`${this.#bold(`$ ${line}`)}\n`);
  }

  output(text: string): void {
    this.#print(text === "" || text.endsWith("\n") ? text : `${text}\n`);
  }

  /** Says that something is so, and whether it really is. */
  claim(text: string, isTrue: boolean): void {
    this.claims++;
    if (!isTrue) this.broken++;
    this.#print(isTrue ? `  ${this.#paint(32, "[true]")} ${text}\n` : `  ${this.#paint(31, "[NOT TRUE]")} ${text}\n`);
  }

  skipped(text: string, why: string): void {
    this.#print(`  ${this.#paint(33, "[skipped]")} ${text}: ${why}\n`);
  }

  /** One between two paragraphs, never two. */
  #blankLine(): string {
    return this.#printed.endsWith("\n\n") ? "" : "\n";
  }

  #bold(text: string): string {
    return this.#paint(1, text);
  }

  #paint(code: number, text: string): string {
    return this.#colours ? `\x1b[${code}m${text}\x1b[0m` : text;
  }

  #print(text: string): void {
    if (this.silent || text === "") return;
    this.#printed = (this.#printed + text).slice(-2);
    const bytes = new TextEncoder().encode(text);
    for (let at = 0; at < bytes.length;) at += Deno.stdout.writeSync(bytes.subarray(at));
  }
}
