// Stand-in for @std/cli/parse-args without `negatable`, `boolean: true` and dotted names. Its oddities are std's own.
type Names<T extends string> = T | readonly T[];
type Options<B extends string, S extends string, C extends string, D, DD extends boolean> = {
  boolean?: Names<B>;
  string?: Names<S>;
  collect?: Names<C>;
  alias?: Record<string, Names<string>>;
  default?: D;
  "--"?: DD;
  stopEarly?: boolean;
  unknown?: (arg: string, key?: string, value?: unknown) => unknown;
};
type Args<B extends string, S extends string, C extends string, D, DD> =
  & Record<string, unknown>
  & { [K in Exclude<B, C>]: boolean }
  & { [K in Exclude<S, C>]?: string }
  & { [K in C]: K extends B ? boolean[] : K extends S ? string[] : unknown[] }
  & D
  & { _: (string | number)[] }
  & (DD extends true ? { "--": string[] } : unknown);

export function parseArgs<
  B extends string = never,
  S extends string = never,
  C extends string = never,
  D extends Record<string, unknown> = Record<never, never>,
  DD extends boolean = false,
>(argv: readonly string[], options: Options<B, S, C, D, DD> = {}): Args<B, S, C, D, DD> {
  const { alias = {}, default: defaults = {}, unknown = () => true } = options;
  const groups = Object.entries(alias).map(([name, others]) => [name, others].flat());
  const family = (key: string) => groups.find((g) => g.includes(key)) ?? [key];
  const names = (kind: "boolean" | "string" | "collect") => [options[kind] ?? []].flat().flatMap(family);
  const [booleans, strings, collected] = [names("boolean"), names("string"), names("collect")];
  const declared = [...booleans, ...strings, ...collected, ...groups.flat()];
  const numeric = (text: string) => /\S/.test(text) && Number.isFinite(Number(text)) ? Number(text) : text;

  const end = argv.includes("--") ? argv.indexOf("--") : argv.length;
  const [args, afterwards] = [argv.slice(0, end), argv.slice(end + 1)];
  const parsed: Record<string, unknown> & { _: unknown[] } = { _: [] };

  while (args.length > 0) {
    const arg = args.shift()!;
    const set = (key: string, given: string | boolean) => {
      if (!declared.includes(key) && unknown(arg, key, given) === false) return;
      const value = typeof given === "string" && !strings.includes(key) ? numeric(given) : given;
      for (const name of family(key)) {
        parsed[name] = collected.includes(key) ? [parsed[name] ?? [], value].flat() : value;
      }
    };
    // The value of a flag without "=": the next argument, where it can be nothing else.
    const setFromNext = (key: string, flagLike: RegExp) => {
      const next = args[0] ?? "";
      const taken = next !== "" && !booleans.includes(key) && !flagLike.test(next);
      if (taken || next === "true" || next === "false") set(key, taken ? args.shift()! : args.shift() === "true");
      else set(key, strings.includes(key) ? "" : true);
    };

    const [, no, name, value] = /^--(no-)?(.+?)(?:=(.*))?$/s.exec(arg) ?? [];
    if (name !== undefined && value !== undefined) set(name, booleans.includes(name) ? value !== "false" : value);
    else if (name !== undefined) setFromNext(`${no ?? ""}${name}`, /^-/);
    else if (/^-./s.test(arg)) {
      let rest = arg.slice(1);
      while (rest.length > 1) {
        const letter = rest[0]!;
        rest = rest.slice(1);
        const value = valueInCluster(letter, rest);
        set(letter, value ?? (strings.includes(letter) ? "" : true));
        if (value !== undefined) rest = "";
      }
      if (rest !== "") setFromNext(rest, /^--?[^-]/);
    } else {
      if (unknown(arg) !== false) parsed._.push(strings.includes("_") ? arg : numeric(arg));
      if (options.stopEarly) parsed._.push(...args.splice(0));
    }
  }

  const absent = (key: string) => !Object.hasOwn(parsed, key);
  for (const [key, value] of Object.entries(defaults)) {
    if (absent(key)) family(key).forEach((name) => parsed[name] = value);
  }
  for (const key of booleans.filter(absent)) parsed[key] = collected.includes(key) ? [] : false;
  for (const key of strings.filter(absent)) if (collected.includes(key)) parsed[key] = [];
  if (options["--"]) parsed["--"] = afterwards;
  else parsed._.push(...afterwards);
  return parsed as Args<B, S, C, D, DD>;
}

/** `-n5`, `-n=5` and `-n/x` are one flag with a value, `-abc` are three without. */
function valueInCluster(letter: string, rest: string): string | undefined {
  if (rest === "-" || rest === "=") return rest === "-" ? "-" : "";
  const isLetter = /[A-Za-z]/.test(letter);
  const assigned = isLetter ? /=(.+)/.exec(rest)?.[1] : undefined;
  if (assigned !== undefined) return assigned;
  return (isLetter && /\d\.?$/.test(rest)) || /^\W./s.test(rest) ? rest : undefined;
}
