# The program in a container. UNTESTED: it was written where no container engine runs.
#
#     docker build -t tinygpt .
#     docker run --rm -v tinygpt-runs:/work/runs tinygpt train --config tiny
#     docker run --rm -v tinygpt-runs:/work/runs tinygpt generate --prompt Once
FROM rust:1-slim-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends build-essential && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --locked

FROM debian:bookworm-slim
RUN useradd --uid 1000 --create-home tinygpt && install --directory --owner=tinygpt --group=tinygpt /work /work/runs
COPY --from=build /src/target/release/tinygpt /usr/local/bin/tinygpt
COPY LICENSE-MIT LICENSE-APACHE /usr/local/share/doc/tinygpt/
USER tinygpt
WORKDIR /work
VOLUME /work/runs
ENTRYPOINT ["tinygpt"]
CMD ["--help"]
