defmodule PgHarness do
  @moduledoc """
  The databases of a living `pg-harness run`: which one is this machine's own, and how it becomes pristine again.

  One file, the standard library and OTP's `:inets` only (Elixir 1.13 or later). Written by `pg-harness init elixir`; it is yours: change
  what you like.
  """

  defmodule Error do
    @moduledoc "What cannot be had, and why."
    defexception [:message]
  end

  @command "pg-harness run -n 4 -- mix test"
  # Seconds to wait for a database while others have all of them; PGHARNESS_LEASE_WAIT says another number.
  @wait "300"
  # Seconds for any other answer: a reset may be a fresh clone on a busy machine.
  @patience 120

  @doc """
  This machine takes its database, pristine; all variables of the run become that one's (DATABASE_URL, PGHOST … and those of
  [tool.pg-harness.env]). By its number, where MIX_TEST_PARTITION says it, else whichever is free; a copy of `run --copies` has its own.
  Before the repository's settings are read: in `config/runtime.exs`, or at the top of `test/test_helper.exs`.
  """
  def use!(worker \\ System.get_env("MIX_TEST_PARTITION")) do
    id = number(worker)

    given =
      if id do
        call(:post, "/v1/reset/#{id}?to=template")
        call(:get, "/v1/env/#{id}")
      else
        take([])
      end

    System.put_env(given.env)
    :persistent_term.put({__MODULE__, :own}, given)
    given
  end

  @doc """
  A database of its own for one test, as tests with `async: true` need it; given back at the end of the test. Its address is `url`:
  variables are the whole machine's.
  """
  def lease! do
    if variable("MIX_TEST_PARTITION") && not copies?() do
      raise Error, "a lease could be the database that another partition has by its number (MIX_TEST_PARTITION): leave that variable out"
    end

    given = take(worker: "#{inspect(self())} (#{System.pid()}.#{System.unique_integer([:positive])})")
    ExUnit.Callbacks.on_exit(fn -> call(:post, "/v1/release/#{given.id}") end)
    given
  end

  @doc "Back to the last mark, else to what the migrations made; `to`: a mark, or \"template\", which forgets all marks."
  def reset!(given \\ own(), to \\ nil) do
    call(:post, "/v1/reset/#{given.id}" <> if(to, do: "?to=" <> encoded(to), else: ""))
    :ok
  end

  @doc "The present state is what reset comes back to; marks stack."
  def mark!(given \\ own()) do
    [_, mark] = Regex.run(~r/"mark":\s*"([^"\\]*)"/, call(:post, "/v1/mark/#{given.id}").text)
    mark
  end

  @doc "Forget a mark, and those above it. The rows stay until the next reset."
  def unmark!(mark, given \\ own()) do
    call(:delete, "/v1/mark/#{given.id}/#{encoded(mark)}")
    :ok
  end

  defp take(more) do
    if copies?() do
      raise Error, "a copy of `pg-harness run --copies` has one database, and tests at once would share it. Run `#{@command}` instead"
    end

    text = variable("PGHARNESS_LEASE_WAIT") || @wait

    unless text =~ ~r/\A[0-9]{1,4}\z/ and String.to_integer(text) <= 3600 do
      raise Error, "PGHARNESS_LEASE_WAIT is a number of seconds up to 3600, not #{inspect(text)}"
    end

    worker = if more[:worker], do: ~s("worker": "#{more[:worker]}", ), else: ""
    call(:post, "/v1/lease", ~s({#{worker}"pid": #{System.pid()}, "wait": #{text}}), String.to_integer(text) + @patience)
  end

  # Outside of a run nothing else is asked.
  defp number(worker) do
    control!()
    count = if copies?(), do: 1, else: String.to_integer(variable("PGHARNESS_WORKERS") || "1")

    cond do
      # Copies are what partitions of `mix test` are: each is told its number, and has one database.
      copies?() ->
        variable("PGHARNESS_LEASE")

      worker in [nil, ""] ->
        nil

      worker =~ ~r/\A[0-9]{1,9}\z/ and String.to_integer(worker) in 1..count ->
        String.to_integer(worker)

      true ->
        raise Error,
              "worker #{inspect(worker)} (MIX_TEST_PARTITION) has no database: this run has #{count}, numbered from 1. " <>
                "Give it as many as there are partitions (`pg-harness run -n N`), or start fewer (--partitions)"
    end
  end

  defp own do
    control!()

    :persistent_term.get({__MODULE__, :own}, nil) ||
      raise Error, "this machine has no database yet: call PgHarness.use!() first"
  end

  defp copies?, do: variable("PGHARNESS_COPIES") != nil

  defp variable(name) do
    case System.get_env(name) do
      "" -> nil
      value -> value
    end
  end

  defp control! do
    with url when url != nil <- variable("PGHARNESS_CONTROL_URL"),
         token when token != nil <- variable("PGHARNESS_CONTROL_TOKEN") do
      {url, token}
    else
      nil -> raise Error, "these tests have no database: they were started outside of pg-harness. Run `#{@command}`"
    end
  end

  defp call(method, path, body \\ "", patience \\ @patience) do
    {url, token} = control!()
    {:ok, _} = Application.ensure_all_started(:inets)
    base = if String.starts_with?(url, "unix://"), do: socket(url), else: url
    # A connection for each request: httpc would queue a release behind a lease that waits for it.
    headers = [{~c"authorization", String.to_charlist("Bearer " <> token)}, {~c"connection", ~c"close"}]
    address = String.to_charlist(base <> path)
    request = if method == :get, do: {address, headers}, else: {address, headers, ~c"application/json", body}
    options = [timeout: patience * 1000, connect_timeout: 10_000, autoredirect: false]

    case :httpc.request(method, request, options, [body_format: :binary], profile(url)) do
      {:ok, {{_, status, _}, _, text}} when status < 300 ->
        answer(text)

      {:ok, {{_, status, _}, _, text}} ->
        # It names who has the databases, where none is free.
        said = string(text, "detail") || String.slice(text, 0, 300)
        raise Error, "pg-harness: #{said} (#{String.upcase(to_string(method))} #{path}: #{status})"

      {:error, why} ->
        raise Error,
              "nobody answers at #{url} (PGHARNESS_CONTROL_URL): #{inspect(why)}. The run #{variable("PGHARNESS_RUN")} is over or was killed; " <>
                "its databases are gone, and no others are taken in their stead. Run `#{@command}`"
    end
  end

  defp profile("unix://" <> _), do: :pg_harness
  defp profile(_), do: :default

  # httpc speaks over a Unix socket by a profile of its own.
  defp socket("unix://" <> path) do
    case :inets.start(:httpc, profile: :pg_harness) do
      {:ok, _} -> :ok
      {:error, {:already_started, _}} -> :ok
    end

    :ok = :httpc.set_options([ipfamily: :local, unix_socket: String.to_charlist(URI.decode(path))], :pg_harness)
    "http://localhost"
  end

  # What is needed of the answers: OTP has no JSON before 27, and this file no dependencies.
  defp answer(text) do
    id = Regex.run(~r/"id":\s*(\d+)/, text)
    env = Regex.run(~r/"env":\s*\{((?:[^"}]|"(?:[^"\\]|\\.)*")*)\}/s, text)
    members = if env, do: Regex.scan(~r/"((?:[^"\\]|\\.)*)":\s*"((?:[^"\\]|\\.)*)"/s, Enum.at(env, 1)), else: []
    variables = Map.new(members, fn [_, name, value] -> {unescaped(name), unescaped(value)} end)
    %{id: id && String.to_integer(Enum.at(id, 1)), env: variables, url: variables["DATABASE_URL"], text: text}
  end

  defp string(text, name) do
    case Regex.run(~r/"#{name}":\s*"((?:[^"\\]|\\.)*)"/s, text) do
      [_, value] -> unescaped(value)
      nil -> nil
    end
  end

  defp unescaped(text) do
    Regex.replace(~r/\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\./s, text, fn
      <<"\\u", high::binary-size(4), "\\u", low::binary-size(4)>> ->
        <<0x10000 + Bitwise.bsl(String.to_integer(high, 16) - 0xD800, 10) + String.to_integer(low, 16) - 0xDC00::utf8>>

      <<"\\u", code::binary-size(4)>> ->
        <<String.to_integer(code, 16)::utf8>>

      "\\b" -> "\b"
      "\\f" -> "\f"
      "\\n" -> "\n"
      "\\r" -> "\r"
      "\\t" -> "\t"
      "\\" <> sign -> sign
    end)
  end

  defp encoded(text), do: URI.encode(text, &URI.char_unreserved?/1)
end
