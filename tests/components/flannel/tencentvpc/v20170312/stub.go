// Package v20170312 stands in for Tencent Cloud's client, a module that the Go proxy does not serve and that only
// flannel's tencent-vpc backend calls. It has the names that backend needs, and every call fails.
package v20170312

import "errors"

var errStandIn = errors.New("this flanneld was built without the Tencent Cloud client")

type Client struct{}

type Filter struct {
	Name   *string
	Values []*string
}

type Route struct {
	DestinationCidrBlock *string
	GatewayType          *string
	GatewayId            *string
	RouteType            *string
	RouteId              *uint64
	Enabled              *bool
}

type RouteTable struct {
	RouteTableId *string
	RouteSet     []*Route
}

type DescribeRouteTablesRequest struct{ Filters []*Filter }

type DescribeRouteTablesResponseParams struct{ RouteTableSet []*RouteTable }

type DescribeRouteTablesResponse struct {
	Response *DescribeRouteTablesResponseParams
}

type RoutesRequest struct {
	RouteTableId *string
	Routes       []*Route
}

func NewClientWithSecretId(_, _, _ string) (*Client, error) { return nil, errStandIn }

func NewDescribeRouteTablesRequest() *DescribeRouteTablesRequest {
	return new(DescribeRouteTablesRequest)
}

func NewDeleteRoutesRequest() *RoutesRequest { return new(RoutesRequest) }

func NewCreateRoutesRequest() *RoutesRequest { return new(RoutesRequest) }

func (*Client) DescribeRouteTables(*DescribeRouteTablesRequest) (*DescribeRouteTablesResponse, error) {
	return nil, errStandIn
}

func (*Client) DeleteRoutes(*RoutesRequest) (struct{}, error) { return struct{}{}, errStandIn }

func (*Client) CreateRoutes(*RoutesRequest) (struct{}, error) { return struct{}{}, errStandIn }
