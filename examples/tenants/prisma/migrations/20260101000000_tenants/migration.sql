CREATE TABLE "Tenant" ("id" SERIAL PRIMARY KEY, "slug" TEXT NOT NULL UNIQUE, "name" TEXT NOT NULL);
CREATE TABLE "Member" ("id" SERIAL PRIMARY KEY, "email" TEXT NOT NULL UNIQUE, "role" TEXT NOT NULL DEFAULT 'OWNER',
    "tenantId" INTEGER NOT NULL REFERENCES "Tenant" ("id"));
CREATE TABLE "Service" ("id" SERIAL PRIMARY KEY, "slug" TEXT NOT NULL, "title" TEXT NOT NULL, "priceCents" INTEGER NOT NULL,
    "tenantId" INTEGER NOT NULL REFERENCES "Tenant" ("id"), UNIQUE ("tenantId", "slug"));
CREATE TABLE "AddOn" ("id" SERIAL PRIMARY KEY, "slug" TEXT NOT NULL, "priceCents" INTEGER NOT NULL,
    "serviceId" INTEGER NOT NULL REFERENCES "Service" ("id"), UNIQUE ("serviceId", "slug"));
CREATE TABLE "Slot" ("id" SERIAL PRIMARY KEY, "day" DATE NOT NULL, "places" INTEGER NOT NULL DEFAULT 1,
    "serviceId" INTEGER NOT NULL REFERENCES "Service" ("id"), UNIQUE ("serviceId", "day"));
CREATE TABLE "Customer" ("id" SERIAL PRIMARY KEY, "email" TEXT NOT NULL, "tenantId" INTEGER NOT NULL REFERENCES "Tenant" ("id"), UNIQUE ("tenantId", "email"));
CREATE TABLE "Booking" ("id" SERIAL PRIMARY KEY, "status" TEXT NOT NULL DEFAULT 'PENDING', "tenantId" INTEGER NOT NULL REFERENCES "Tenant" ("id"),
    "slotId" INTEGER NOT NULL REFERENCES "Slot" ("id"), "customerId" INTEGER NOT NULL REFERENCES "Customer" ("id"));
CREATE TABLE "BookingAddOn" ("bookingId" INTEGER NOT NULL REFERENCES "Booking" ("id"), "addOnId" INTEGER NOT NULL REFERENCES "AddOn" ("id"),
    PRIMARY KEY ("bookingId", "addOnId"));
