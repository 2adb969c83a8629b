// A pristine database of a living `pg-harness run` for each test class, and how it becomes pristine again before each test.
//
// One file, the framework's own classes only (.NET 6 or later; C# 7.3). Written by `pg-harness init dotnet`; it is yours: change what you like.

using System;
using System.Collections.Generic;
using System.Data.Common;
using System.Diagnostics;
using System.Globalization;
using System.IO;
using System.Net.Sockets;
using System.Runtime.Serialization;
using System.Runtime.Serialization.Json;
using System.Text;
using System.Threading;

namespace PgHarness
{
    /// <summary>The tests were started outside of a run, or the run refused, or is over.</summary>
    public sealed class PgHarnessException : Exception
    {
        public PgHarnessException(string message) : base(message) { }
    }

    /// <summary>
    /// One database, this object's alone until it is disposed of, or the process ends. As xUnit's class fixture
    /// (<c>IClassFixture&lt;PgHarness.Database&gt;</c>): classes run side by side, each on its own.
    /// </summary>
    public sealed class Database : IDisposable
    {
        private const string Command = "pg-harness run -n 4 -- dotnet test";
        /// <summary>Seconds to wait for a database while others have all of them; PGHARNESS_LEASE_WAIT says another number.</summary>
        private const string Wait = "300";
        /// <summary>Seconds for any other answer: a reset may be a fresh clone on a busy machine.</summary>
        private const int Patience = 120;

        private static int _copy;
        private readonly bool _isCopy;
        private bool _given;

        /// <summary>Takes a database, pristine. Where all are taken it waits until one is given back.</summary>
        public Database()
        {
            Variable("PGHARNESS_CONTROL_URL");
            Answer answer;
            if (Get("PGHARNESS_COPIES") != "")
            {
                if (Interlocked.CompareExchange(ref _copy, 1, 0) != 0)
                    throw new PgHarnessException("a copy of `pg-harness run --copies` has one database, which another object has: run its tests one "
                        + "after the other, or all in one process by `" + Command + "`");
                _isCopy = true;
                string id = Get("PGHARNESS_LEASE");
                Call("POST", "/v1/reset/" + id + "?to=template");
                answer = Call("GET", "/v1/env/" + id);
            }
            else
            {
                string wait = Get("PGHARNESS_LEASE_WAIT") == "" ? Wait : Get("PGHARNESS_LEASE_WAIT");
                if (!int.TryParse(wait, NumberStyles.None, CultureInfo.InvariantCulture, out int seconds) || seconds > 3600)
                    throw new PgHarnessException("PGHARNESS_LEASE_WAIT is a number of seconds up to 3600, not '" + wait + "'");
                int pid = Process.GetCurrentProcess().Id;
                answer = Call("POST", "/v1/lease", "{\"pid\": " + pid + ", \"wait\": " + seconds + "}", seconds + Patience);
            }
            Id = answer.Id;
            Variables = answer.Variables;
            _given = true;
        }

        /// <summary>Its number in the run.</summary>
        public int Id { get; }

        /// <summary>DATABASE_URL, PGHOST … and those of [tool.pg-harness.env], for the application or a process that it starts.</summary>
        public IReadOnlyDictionary<string, string> Variables { get; }

        /// <summary>postgresql://…</summary>
        public string Url => Variables["DATABASE_URL"];

        /// <summary>For Npgsql: Host=…;Port=…;Username=…;Password=…;Database=…</summary>
        public string ConnectionString
        {
            get
            {
                var made = new DbConnectionStringBuilder();
                made["Host"] = Variables["PGHOST"];
                made["Port"] = Variables["PGPORT"];
                made["Username"] = Variables["PGUSER"];
                made["Password"] = Variables["PGPASSWORD"];
                made["Database"] = Variables["PGDATABASE"];
                return made.ConnectionString;
            }
        }

        /// <summary>Back to the last mark, else to what the migrations made; connections stay open.</summary>
        /// <param name="to">A mark, or "template", which forgets all marks.</param>
        public void Reset(string to = null)
        {
            Call("POST", "/v1/reset/" + Id + (to == null ? "" : "?to=" + Uri.EscapeDataString(to)));
        }

        /// <summary>The present state is what Reset comes back to; marks stack.</summary>
        public string Mark() => Call("POST", "/v1/mark/" + Id).Mark;

        /// <summary>Forget a mark, and those above it. The rows stay until the next reset.</summary>
        public void Unmark(string mark)
        {
            Call("DELETE", "/v1/mark/" + Id + "/" + Uri.EscapeDataString(mark));
        }

        /// <summary>Give it back. Whose process ends, or is killed, gives it back by being gone.</summary>
        public void Dispose()
        {
            if (!_given) return;
            _given = false;
            if (_isCopy) Interlocked.Exchange(ref _copy, 0);
            else Call("POST", "/v1/release/" + Id);
        }

        private static string Get(string name) => Environment.GetEnvironmentVariable(name) ?? "";

        private static string Variable(string name)
        {
            string value = Get(name);
            if (value == "")
                throw new PgHarnessException("these tests have no database: they were started outside of pg-harness. Run `" + Command + "`");
            return value;
        }

        private static Answer Call(string method, string path, string body = "", int patience = Patience)
        {
            string head = method + " " + path + " HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + Variable("PGHARNESS_CONTROL_TOKEN")
                + "\r\nContent-Type: application/json\r\nContent-Length: " + Encoding.UTF8.GetByteCount(body) + "\r\nConnection: close\r\n\r\n";
            string[] parts = Sent(head + body, patience).Split(new[] { "\r\n\r\n" }, 2, StringSplitOptions.None);
            string[] words = parts[0].Split(' ');
            int status = words.Length > 1 && int.TryParse(words[1], out int code) ? code : 0;
            Answer answer = Read(parts[1]);
            if (status >= 200 && status < 300) return answer;
            // It names who has the databases, where none is free.
            string detail = answer.Detail ?? answer.Title ?? parts[0];
            throw new PgHarnessException("pg-harness: " + detail + " (" + method + " " + path + ": " + status + ")");
        }

        private static Answer Read(string text)
        {
            if (!text.TrimStart().StartsWith("{", StringComparison.Ordinal)) return new Answer();
            var settings = new DataContractJsonSerializerSettings { UseSimpleDictionaryFormat = true };
            var reader = new DataContractJsonSerializer(typeof(Answer), settings);
            try
            {
                using (var stream = new MemoryStream(Encoding.UTF8.GetBytes(text))) return (Answer)reader.ReadObject(stream);
            }
            catch (SerializationException)
            {
                // Whoever answers there is no run of ours.
                return new Answer();
            }
        }

        private static string Sent(string request, int patience)
        {
            string url = Variable("PGHARNESS_CONTROL_URL");
            string why = "the connection was closed without an answer";
            try
            {
                using (Socket socket = Connected(url))
                {
                    socket.ReceiveTimeout = socket.SendTimeout = patience * 1000;
                    byte[] content = Encoding.UTF8.GetBytes(request);
                    for (int sent = 0; sent < content.Length;)
                        sent += socket.Send(content, sent, content.Length - sent, SocketFlags.None);
                    var all = new MemoryStream();
                    var buffer = new byte[8192];
                    for (int got; (got = socket.Receive(buffer)) > 0;) all.Write(buffer, 0, got);
                    string answer = Encoding.UTF8.GetString(all.ToArray());
                    if (answer.Contains("\r\n\r\n")) return answer;
                }
            }
            catch (Exception error) when (error is SocketException || error is UriFormatException || error is ArgumentException)
            {
                why = error.Message;
            }
            throw new PgHarnessException("nobody answers at " + url + " (PGHARNESS_CONTROL_URL): " + why + ". The run " + Get("PGHARNESS_RUN")
                + " is over or was killed; its databases are gone, and no others are taken in their stead. Run `" + Command + "`");
        }

        private static Socket Connected(string url)
        {
            Socket socket;
            if (url.StartsWith("unix://", StringComparison.Ordinal))
            {
                socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
                socket.Connect(new UnixDomainSocketEndPoint(Uri.UnescapeDataString(url.Substring("unix://".Length))));
                return socket;
            }
            var address = new Uri(url);
            socket = new Socket(SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
            socket.Connect(address.Host, address.Port);
            return socket;
        }

        [DataContract]
        private sealed class Answer
        {
            [DataMember(Name = "id")] public int Id;
            [DataMember(Name = "mark")] public string Mark;
            [DataMember(Name = "detail")] public string Detail;
            [DataMember(Name = "title")] public string Title;
            [DataMember(Name = "env")] public Dictionary<string, string> Variables;
        }
    }
}
