//! See `tests::probe`.

fn main() -> std::process::ExitCode {
    tests::probe::main(std::env::args().skip(1).collect())
}
