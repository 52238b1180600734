/**
 * `deno run --allow-read tools/formula.ts OWNER/REPOSITORY SHA256SUMS`: the Homebrew formula of this version, with the sums
 * of its files.
 * @module
 */

/** The sum of each file, as `shasum -a 256` writes them. */
export function readSums(text: string): Map<string, string> {
  return new Map([...text.matchAll(/^([0-9a-f]{64}) [ *](\S+)$/gm)].map(([, sum = "", file = ""]) => [file, sum]));
}

/** The formula. Throws if a file has no sum. */
export function formula(repository: string, version: string, sums: ReadonlyMap<string, string>): string {
  const source = (file: string, indent: string) => {
    const sum = sums.get(file);
    if (sum === undefined) throw new Error(`SHA256SUMS has no line for ${file}`);
    const url = `https://github.com/${repository}/releases/download/v${version}/${file}`;
    return `${indent}url "${url}"\n${indent}sha256 "${sum}"`;
  };
  const binary = (target: string) => source(`lima-guard-${target}`, "      ");
  return `class LimaGuard < Formula
  desc "Keeps Lima and Colima virtual machines working across reboots"
  homepage "https://github.com/${repository}"
  version "${version}"
  license "MIT"

  on_macos do
    depends_on macos: :ventura

    on_arm do
${binary("aarch64-apple-darwin")}
    end
    on_intel do
${binary("x86_64-apple-darwin")}
    end
  end

  on_linux do
    on_arm do
${binary("aarch64-unknown-linux-gnu")}
    end
    on_intel do
${binary("x86_64-unknown-linux-gnu")}
    end
  end

  resource "manual" do
${source("lima-guard-manual.tar.gz", "    ")}
  end

  def install
    bin.install Dir["lima-guard-*"].first => "lima-guard"
    chmod 0755, bin/"lima-guard"
    resource("manual").stage do
      man1.install "man/lima-guard.1"
      bash_completion.install "completions/lima-guard.bash" => "lima-guard"
      zsh_completion.install "completions/lima-guard.zsh" => "_lima-guard"
      fish_completion.install "completions/lima-guard.fish"
    end
  end

  def caveats
    <<~EOS
      launchd runs the copy that --install has made. After each upgrade:
        lima-guard --install --all
    EOS
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/lima-guard --version")
  end
end
`;
}

if (import.meta.main) {
  const [repository = "", sums = ""] = Deno.args;
  const guard = await Deno.readTextFile(new URL("../lima_guard.ts", import.meta.url));
  const version = /^export const VERSION = "(.+)";$/m.exec(guard)?.[1] ?? "";
  const text = formula(repository, version, readSums(await Deno.readTextFile(sums)));
  await Deno.stdout.write(new TextEncoder().encode(text));
}
