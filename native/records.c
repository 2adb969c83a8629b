/*
 * Records of the write-ahead log, one after the other, as far as a rewind has to know them: whose they are, which pages they
 * name, and their data.
 *
 * PostgreSQL's own reader (xlogreader.c) copies each page and each record, checks a sum over its bytes and takes all of it
 * apart: three quarters of a reset after 10,000 new rows.  The bytes are the server's own, of this life of it, and flushed; so
 * it is enough that each record fills its length exactly, and whatever does not is an answer, not a guess.
 */
#include "pgh.h"

#include "access/rmgr.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "access/xlogreader.h"
#include "access/xlogutils.h"
#include "catalog/pg_control.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#define AT_ONCE (16 * XLOG_BLCKSZ)	/* stays in the processor's cache, where it is read a second time */
#define MOST_KEPT (64 * XLOG_BLCKSZ)

typedef struct Stream
{
	XLogRecPtr	begin,
				at,				/* the next byte of a record: never a page's header */
				until,
				from,			/* what of the log lies in raw */
				end;
} Stream;

/* Kept from one reading to the next: memory of this size comes from the system, and is cleared by it, each time. */
static char *raw = NULL;
static char *assembled = NULL;	/* a record that does not lie on one page */
static Size room = 0;

/* Opens the files; kept, since nothing closes one that an error leaves open. */
static XLogReaderState *reader = NULL;

static void
close_segment(void)
{
	if (reader->seg.ws_file >= 0)
		wal_segment_close(reader);
}

/* Where the first record lies that begins at a position or after it: a page of the log begins with a header. */
XLogRecPtr
first_record(XLogRecPtr position)
{
	if (XLogSegmentOffset(position, wal_segment_size) == 0)
		return position + SizeOfXLogLongPHD;
	if (position % XLOG_BLCKSZ == 0)
		return position + SizeOfXLogShortPHD;
	return position;
}

/* Read the page on which the next byte lies, and those behind it. */
static void
load(Stream *stream)
{
	WALReadError error;

	stream->from = stream->at / XLOG_BLCKSZ * XLOG_BLCKSZ;
	stream->end = Min(stream->until, stream->from + AT_ONCE);
	if (!WALRead(reader, raw, stream->from, stream->end - stream->from, GetWALInsertionTimeLine(), &error))
		WALReadRaiseError(&error);
	for (XLogRecPtr page = stream->from; page < stream->end; page += XLOG_BLCKSZ)
	{
		const XLogPageHeaderData *header = (const XLogPageHeaderData *) (raw + (page - stream->from));

		/*
		 * A checkpoint may have given this file another name, and pages of later.  Behind a switch to the next segment
		 * (pg_switch_wal, a base backup) there are zeros, without headers (CopyXLogRecordToWAL).
		 */
		if ((header->xlp_magic != XLOG_PAGE_MAGIC || header->xlp_pageaddr != page ||
			 (page >= stream->begin && (header->xlp_info & XLP_FIRST_IS_OVERWRITE_CONTRECORD))) &&
			(header->xlp_magic != 0 || header->xlp_pageaddr != 0))
			ereport(ERROR, errcode(ERRCODE_UNDEFINED_FILE), errmsg("WAL at %X/%X was recycled", LSN_FORMAT_ARGS(page)));
	}
}

/* How many bytes there are in one piece; 0 at the end. */
static Size
available(Stream *stream)
{
	if (stream->at >= stream->until)
		return 0;
	if (stream->at < stream->from || stream->at >= stream->end)
		load(stream);
	return Min(stream->until, stream->at / XLOG_BLCKSZ * XLOG_BLCKSZ + XLOG_BLCKSZ) - stream->at;
}

static const char *
bytes_at(const Stream *stream)
{
	return raw + (stream->at - stream->from);
}

static void
advance(Stream *stream, Size bytes)
{
	stream->at = first_record(stream->at + bytes);
}

/* The next record, which is this long; NULL where the log ends before it does. */
static const XLogRecord *
whole_record(Stream *stream, uint32 length)
{
	Size		there = available(stream),
				used = 0;

	if (length <= there)
	{
		const char *record = bytes_at(stream);

		advance(stream, MAXALIGN(length));
		return (const XLogRecord *) record;
	}
	if (length > room)
	{
		if (assembled != NULL)
			pfree(assembled);
		assembled = NULL;
		room = 0;
		assembled = MemoryContextAllocHuge(TopMemoryContext, Max(length, BLCKSZ));
		room = Max(length, BLCKSZ);
	}
	while (used < length)
	{
		Size		piece = Min(available(stream), length - used);

		if (piece == 0)
			return NULL;
		memcpy(assembled + used, bytes_at(stream), piece);
		used += piece;
		advance(stream, used == length ? MAXALIGN(piece) : piece);
	}
	return (const XLogRecord *) assembled;
}

static void
open_stream(Stream *stream, XLogRecPtr from, XLogRecPtr until)
{
	if (reader == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		reader = XLogReaderAllocate(wal_segment_size, NULL,
									XL_ROUTINE(.page_read = NULL, .segment_open = &wal_segment_open,
											   .segment_close = &wal_segment_close), NULL);
		MemoryContextSwitchTo(old);
		if (reader == NULL)
			ereport(ERROR, errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory"));
	}
	if (raw == NULL)
		raw = MemoryContextAlloc(TopMemoryContext, AT_ONCE);
	/* An error may have left it open. */
	close_segment();
	*stream = (Stream) {from, first_record(from), until, InvalidXLogRecPtr, InvalidXLogRecPtr};
}

static void
close_stream(void)
{
	close_segment();
	if (room > MOST_KEPT)
	{
		pfree(assembled);
		assembled = NULL;
		room = 0;
	}
}

#define TAKE(what) \
	do { \
		if (rest < sizeof (what)) \
			return false; \
		memcpy(&(what), at, sizeof (what)); \
		at += sizeof (what); \
		rest -= sizeof (what); \
	} while (0)

/* Take a record apart; false where it is not as DecodeXLogRecord expects it. */
static bool
parse(LogRecord *record)
{
	const char *at = (const char *) record->header + SizeOfXLogRecord;
	uint32		rest = record->header->xl_tot_len - SizeOfXLogRecord,
				data = 0,
				main_data = 0;
	Locator		locator = {0};
	bool		located = false;

	record->nblocks = 0;
	while (rest > data)
	{
		uint8		id;

		TAKE(id);
		if (id == XLR_BLOCK_ID_DATA_SHORT)
		{
			uint8		length;

			TAKE(length);
			data += main_data = length;
			break;
		}
		if (id == XLR_BLOCK_ID_DATA_LONG)
		{
			TAKE(main_data);
			data += main_data;
			break;
		}
		if (id == XLR_BLOCK_ID_ORIGIN)
		{
			RepOriginId origin;

			TAKE(origin);
		}
		else if (id == XLR_BLOCK_ID_TOPLEVEL_XID)
		{
			TransactionId xid;

			TAKE(xid);
		}
		else if (id <= XLR_MAX_BLOCK_ID)
		{
			LogBlock   *block = &record->blocks[record->nblocks++];
			uint8		flags;
			uint16		length;

			TAKE(flags);
			TAKE(length);
			data += length;
			if (flags & BKPBLOCK_HAS_IMAGE)
			{
				uint16		hole;
				uint8		info;

				TAKE(length);
				TAKE(hole);
				TAKE(info);
				data += length;
				if (BKPIMAGE_COMPRESSED(info) && (info & BKPIMAGE_HAS_HOLE))
					TAKE(hole);
			}
			if (!(flags & BKPBLOCK_SAME_REL))
			{
				TAKE(locator);
				located = true;
			}
			if (!located || record->nblocks > XLR_MAX_BLOCK_ID)
				return false;
			block->at = locator;
			block->fork = flags & BKPBLOCK_FORK_MASK;
			TAKE(block->block);
			if (block->fork >= FORKS)
				return false;
		}
		else
			return false;
	}
	if (rest != data)
		return false;
	/* As the server's own functions expect it; they are given no others' data. */
	if (record->header->xl_rmid == RM_XACT_ID || record->header->xl_rmid == RM_SMGR_ID ||
		record->header->xl_rmid == RM_RELMAP_ID)
	{
		if (main_data > record->room)
			record->data = repalloc(record->data, record->room = main_data);
		memcpy(record->data, at + rest - main_data, main_data);
	}
	return true;
}

/* Read the records from .. until; NULL, or why they cannot be read. */
const char *
each_record(XLogRecPtr from, XLogRecPtr until, void (*note) (const LogRecord *record, void *seen), void *seen)
{
	Stream		stream;
	LogRecord  *record = palloc(sizeof *record);
	bool		switched = false;
	const char *problem = NULL;

	open_stream(&stream, from, until);
	record->data = palloc(record->room = 1024);
	while (available(&stream) > 0)
	{
		/* The first word of a record is never torn. */
		uint32		length = ((const XLogRecord *) bytes_at(&stream))->xl_tot_len;

		if (length == 0 && switched)
		{
			/* The rest of a segment that was not filled. */
			advance(&stream, MAXIMUM_ALIGNOF);
			continue;
		}
		if (length < SizeOfXLogRecord)
		{
			problem = "a record of the log is not understood";
			break;
		}
		/* The last one is our own message, and ends where the reading does. */
		if ((record->header = whole_record(&stream, length)) == NULL)
		{
			problem = "the log ends in a record";
			break;
		}
		if (!parse(record))
		{
			problem = "a record of the log is not understood";
			break;
		}
#ifdef PGH_PLANT_ONE_RECORD_SHORT
		/* Our own message is the last one, and shorter than that. */
		if (stream.at + 96 >= until)
			break;
#endif
		switched = record->header->xl_rmid == RM_XLOG_ID && (record->header->xl_info & ~XLR_INFO_MASK) == XLOG_SWITCH;
		note(record, seen);
		CHECK_FOR_INTERRUPTS();
	}
	close_stream();
	pfree(record->data);
	pfree(record);
	return problem;
}
