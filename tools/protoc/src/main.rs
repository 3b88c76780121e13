//! The part of `protoc`'s command line that prost-build uses, on top of protox. Nothing more.
use std::{env, fs, path::PathBuf, process::ExitCode};

fn main() -> ExitCode {
    let (mut includes, mut files, mut out) = (Vec::<PathBuf>::new(), Vec::<PathBuf>::new(), None::<PathBuf>);
    let mut args = env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--version" => {
                println!("libprotoc 3.21.12");
                return ExitCode::SUCCESS;
            }
            "--include_imports" | "--include_source_info" => {}
            "-I" => includes.extend(args.next().map(PathBuf::from)),
            "-o" => out = args.next().map(PathBuf::from),
            s if s.starts_with("-I") => includes.push(s[2..].into()),
            s if s.starts_with("--") => {
                eprintln!("protoc (protox): unknown option {s}");
                return ExitCode::from(2);
            }
            s => files.push(s.into()),
        }
    }
    let Some(out) = out else {
        eprintln!("protoc (protox): -o FILE is missing");
        return ExitCode::from(2);
    };
    let compiled = protox::Compiler::new(includes).and_then(|mut compiler| {
        compiler.include_imports(true).include_source_info(true).open_files(files)?;
        Ok(compiler.encode_file_descriptor_set())
    });
    match compiled.map(|bytes| fs::write(&out, bytes)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(e)) => {
            eprintln!("protoc (protox): {}: {e}", out.display());
            ExitCode::FAILURE
        }
        Err(e) => {
            eprintln!("{e:?}");
            ExitCode::FAILURE
        }
    }
}
